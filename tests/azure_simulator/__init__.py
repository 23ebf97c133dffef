"""A strict stand-in for Azure OpenAI, on loopback: Azure's paths, checks and answers, and its failures on demand.

    with Simulator() as azure:
        gate = Gate(before=2)
        azure.faults.next(gate, reshape.crlf)
        ... a request to azure.http_url or azure.https_url with azure.key ...
        azure.wait_for_request().headers

`steps` (Cut, Delay, Gate), `refusals` (status, content_filter, ...) and `reshape` (split, compressed, async_filter, ...) have the faults.
"""

from __future__ import annotations

from . import refusals, reshape
from .faults import Fault, Faults
from .prompt_cache import PromptCache
from .received import Received
from .refusals import content_filter, status
from .scripts import planned
from .server import Simulator
from .steps import Cut, Delay, Gate

__all__ = [
    "Cut",
    "Delay",
    "Fault",
    "Faults",
    "Gate",
    "PromptCache",
    "Received",
    "Simulator",
    "content_filter",
    "planned",
    "refusals",
    "reshape",
    "status",
]
