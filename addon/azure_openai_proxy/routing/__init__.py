"""The choice of the backend for a request: health, load balancing, affinity, retries, repair of rejected requests, Entra ID tokens.

`attempts` decides for one request, with `candidates`, and `state` holds the shared state of all requests. The subpackage sends no requests.
It may import `config` and the layers below it.
`__all__` lists the modules that other subpackages may import; importing the subpackage loads none of them.
"""

__all__ = ["attempts", "decisions", "deployment_discovery", "entra_tokens", "learned_repairs", "pool", "repair_changes", "state"]
