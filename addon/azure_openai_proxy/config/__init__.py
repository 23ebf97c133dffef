"""Options from the command line, the environment and files, resolved to one frozen `Settings`.

`options` is the table of all options; `runtime` follows changes while the proxy runs. It may import `api`, `formats` and `errors`.
`__all__` lists the modules that other subpackages may import; importing the subpackage loads none of them.
"""

__all__ = [
    "clients",
    "confdir",
    "option_conflicts",
    "options",
    "origins",
    "parsers",
    "prices",
    "regular_file",
    "runtime",
    "settings",
    "sources",
    "startup_warnings",
]
