"""OpenAI's and Azure OpenAI's HTTP APIs as values, and the translation between them: requests, responses, errors, credentials.

Everything here is a function of its arguments: no sockets, options or state between requests. It may import `formats` and `errors`.
`__all__` lists the modules that other subpackages may import; importing the subpackage loads none of them.
"""

__all__ = [
    "backend",
    "credentials",
    "endpoints",
    "error_translation",
    "large_bodies",
    "local_responses",
    "model_mapping",
    "operation",
    "realtime",
    "redaction",
    "request",
    "request_compression",
    "request_syntax",
    "response",
    "response_headers",
    "response_items",
    "session",
    "stream_failures",
    "stream_probe",
    "url_rewriting",
]
