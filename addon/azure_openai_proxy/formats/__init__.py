"""Codecs for body formats: compression, JSON, multipart, server-sent events, quoting for shells, Python and terminals; paths.

They do no I/O and know neither API; `sequences` compares any two sequences. This subpackage imports nothing else of the package.
`__all__` lists the modules that other subpackages may import; importing the subpackage loads none of them.
"""

__all__ = ["compression", "json_edit", "json_scan", "multipart", "paths", "quoting", "sequences", "sse"]
