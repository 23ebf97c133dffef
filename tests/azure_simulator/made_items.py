"""The items that a resource made for its responses. Another resource can neither find nor decrypt them, and refuses them as Azure does.

Ids and encrypted contents name the resource that made them, so that simulators in other processes know them too. Any other id is accepted.
"""

from __future__ import annotations

import base64
import re
import secrets
from typing import TYPE_CHECKING, Any

from . import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["MadeItems"]

_ID = re.compile(r"[a-z]+_(sim[0-9a-f]{16})[0-9a-f]{16}")
_ENCRYPTED = re.compile(rb"(sim[0-9a-f]{16}):")
_PREFIX = "gAAAAA"


class MadeItems:
    def __init__(self) -> None:
        self._resource = f"sim{secrets.token_hex(8)}"
        self._ids: set[str] = set()
        self._encrypted: set[str] = set()

    def id(self, prefix: str) -> str:
        """The id of a new item: `rs_...`."""
        made = f"{prefix}_{self._resource}{secrets.token_hex(8)}"
        self._ids.add(made)
        return made

    def encrypted(self) -> str:
        """The `encrypted_content` of a new item."""
        made = _PREFIX + base64.urlsafe_b64encode(f"{self._resource}:{secrets.token_hex(64)}".encode()).decode()
        self._encrypted.add(made)
        return made

    def check(self, asked: Mapping[str, Any]) -> None:
        """Refuse the items of another resource.

        Raises:
            AzureError: an item of the input was made by another resource.
        """
        items = asked.get("input")
        for item in items if isinstance(items, list) else []:
            if not isinstance(item, dict):
                continue
            id_, encrypted = item.get("id"), item.get("encrypted_content")
            by_id = item.get("type") == "item_reference" or (item.get("type") == "reasoning" and not encrypted)
            if by_id and isinstance(id_, str) and _ID.fullmatch(id_) and id_ not in self._ids:
                raise errors.item_not_found(id_)
            if isinstance(encrypted, str) and _resource(encrypted) and encrypted not in self._encrypted:
                raise errors.not_decrypted(encrypted)
        previous = asked.get("previous_response_id")
        if isinstance(previous, str) and _ID.fullmatch(previous) and previous not in self._ids:
            raise errors.previous_not_found(previous)


def _resource(encrypted: str) -> str | None:
    try:
        found = _ENCRYPTED.match(base64.urlsafe_b64decode(encrypted.removeprefix(_PREFIX)))
    except ValueError:
        return None
    return found[1].decode() if found else None
