"""Service tiers with another price or speed: a request keeps its tier at each backend, or gets Azure's refusal.

A backend that refused a tier for a deployment is passed over for an hour, while another one is left. With `tier_fallback`, one last attempt
without the tier follows. Rate limits and cool-downs of a tier are separate from those of the deployment's other requests.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from . import repair

if TYPE_CHECKING:
    from mitmproxy import http

__all__ = ["REFUSED_FOR", "entry", "is_refusal"]

REFUSED_FOR = 3600.0
"""Seconds for which other backends are preferred after a refusal."""
_STATUSES = frozenset({400, 403, 404, 422})
_TIER = re.compile(r"service[ _]tier|\b(?:flex|priority|fast|scale|ultrafast)\W+(?:service|processing|tier)\b", re.IGNORECASE)
_REFUSES = re.compile(r"\bnot (?:\w+ )?(?:supported|available|enabled|allowed)|\bunsupported|\binvalid|\bdoes not support", re.IGNORECASE)
_LONGEST = 1000  # characters of a message: a longer one may contain a client's text


def entry(deployment: str, tier: str) -> str:
    """The name under which the pool has the deployment for requests of this tier."""
    return f"{deployment} ({tier})" if tier else deployment


def is_refusal(response: http.Response, tier: str) -> bool:
    """Whether Azure refused the tier of the request."""
    if response.status_code not in _STATUSES:
        return False
    error = repair.error_object(response.get_content(strict=False) or b"")
    message, param = error.get("message"), error.get("param")
    if param == "service_tier":
        return True
    if param or not isinstance(message, str) or len(message) >= _LONGEST:
        return False
    return bool(_TIER.search(message)) or (_names(tier, message) and bool(_REFUSES.search(message)))


def _names(tier: str, message: str) -> bool:
    return re.search(rf"\b{tier}\b", message, re.IGNORECASE) is not None
