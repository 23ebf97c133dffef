"""Which backend gets a request: health, load balancing, affinity, retries, repair of refused requests, Entra ID tokens.

`attempts` decides for one request, `state` is what requests share. It sends nothing. It may import `config` and the layers below it.
`__all__` lists the modules that other subpackages may import; importing the subpackage loads none of them.
"""

__all__ = ["attempts", "deployment_discovery", "entra_tokens", "pool", "repair", "state"]
