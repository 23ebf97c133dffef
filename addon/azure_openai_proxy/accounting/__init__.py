"""Usage and cost of each call, and the sinks that they go to: Prometheus, OpenTelemetry, an access log, a ledger.

Each part is off by default. A sink's module is imported when its option is set, and its library with it. The subpackage may import `egress`
and the layers below it.
`__all__` lists the modules that other subpackages may import; importing the subpackage loads none of them.
"""

__all__ = [
    "accounts",
    "budgets",
    "estimate",
    "ledger",
    "limits",
    "meter",
    "meters",
    "prices",
    "record",
    "sink",
    "socket_responses",
    "teams",
    "usage",
]
