"""Display of requests and responses: comments, metadata, content views, commands, exports, recordings and their replay.

Nothing here may fail or delay a request. It may import `accounting` and the layers below it.
`__all__` lists the modules that other subpackages may import; importing the subpackage loads none of them.
"""

__all__ = [
    "commands",
    "contentviews",
    "flow_metadata",
    "recorder",
    "replay_server",
    "request_replay",
    "sharing",
    "site",
    "thread_commands",
    "threads",
]
