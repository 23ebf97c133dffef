"""The clients that the proxy knows: those of the configuration file, and the managed ones of a database.

A key is looked up by its SHA-256, so the time of a lookup says nothing about the keys that exist.
"""

from __future__ import annotations

import hmac
import logging
from typing import TYPE_CHECKING

from azure_openai_proxy.config.clients import Client, ClientKey, Group, digest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Directory"]

logger = logging.getLogger(__name__)


class Directory:
    """Clients by their keys. Each of the two sources can be replaced at any time; of two clients with the same name the file's counts."""

    def __init__(self) -> None:
        self.clients: Mapping[str, Client] = {}  # by name, of both sources
        self.groups: Mapping[str, Group] = {}
        self.had_clients = False  # a client was known once: the keys stay required until the process ends
        self.waiting = ""  # why managed keys and budgets are not known yet, for the error of a request; "": they are
        self._file: tuple[Client, ...] = ()
        self._managed: tuple[Client, ...] = ()
        self._by_key: dict[bytes, Client] = {}
        self._hidden: set[str] = set()  # names of managed clients that were logged

    def use_file(self, clients: Iterable[Client], groups: Iterable[Group]) -> None:
        """Replace the clients and groups of the configuration file."""
        self._file = tuple(clients)
        self.groups = {group.name: group for group in groups}
        self._merge()

    def use_managed(self, clients: Iterable[Client]) -> None:
        """Replace the clients of the database."""
        self._managed = tuple(clients)
        self._merge()

    def _merge(self) -> None:
        names = {client.name for client in self._file}
        for client in self._managed:
            if client.name in names and client.name not in self._hidden:
                self._hidden.add(client.name)
                logger.warning("The key %s of the database is not used: azure_openai_clients has a client of this name", client.name)
        managed = [client for client in self._managed if client.name not in names]
        known = [*managed, *self._file]
        self.clients = {client.name: client for client in known}
        self._by_key = {key.sha256: client for client in known for key in client.keys}
        self.had_clients = self.had_clients or bool(known)

    def find(self, key: str) -> Client | None:
        """Return the client of a key, also a disabled or expired one."""
        sought = digest(key)
        client = self._by_key.get(sought)
        return client if client and any(hmac.compare_digest(one.sha256, sought) for one in client.keys) else None

    @staticmethod
    def is_key(key: ClientKey, texts: Iterable[str]) -> bool:
        """Return whether one of these texts is the key."""
        return any(hmac.compare_digest(key.sha256, digest(text)) for text in texts)

    def of_file(self, client: Client) -> bool:
        """Return whether this client is one of the configuration file."""
        return any(one.name == client.name for one in self._file)

    def group(self, client: Client) -> Group | None:
        return self.groups.get(client.group) if client.group else None
