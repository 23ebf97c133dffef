"""The ledger: one database row for each call, in SQLite or PostgreSQL, through SQLAlchemy (the extra `ledger`).

`columns` is the table of columns, `schema` the tables and their versions, `database` the connections, `writer` the thread that writes,
`sink` the sink of records that starts it, `keys` the managed client keys, `state` the keys and sums that proxies read every few seconds,
and `report` the queries of `azure-openai-proxy usage`. Only `sink` needs mitmproxy.
"""

INSTALL = 'pip install ".[ledger]" in the proxy\'s repository'

__all__ = ["columns", "database", "report", "schema", "sink", "writer"]
