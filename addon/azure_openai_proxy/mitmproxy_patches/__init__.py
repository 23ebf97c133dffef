"""The only code that uses private parts of mitmproxy, h11 and asyncio.

`install` is the entry point and can be imported with any mitmproxy, as `connections` can; all other modules are imported on demand. It may
import `client_leg`, `compatibility` and `errors` only, and is imported by `addon` and by `registry`, `relay_guard` and `shutdown` of
`gateway`.
`__all__` lists the modules that other subpackages may import; importing the subpackage loads none of them.
"""

__all__ = ["connections", "install"]
