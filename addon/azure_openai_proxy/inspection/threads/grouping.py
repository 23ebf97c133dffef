"""Which calls belong to one thread.

A call continues an earlier one if it names its response or its conversation, or if its messages repeat the earlier request or its answer,
whatever else changed. A call that continues none starts a thread: a child if it belongs to a session that has a thread already, or if its
first message is the argument of a tool call. Calls are added one by one, in the order of their start, with bounded work for each.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from azure_openai_proxy.formats.sequences import common_prefix

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .calls import Call

__all__ = ["Groups", "Thread", "family"]

MOST_CANDIDATES = 32
"""Earlier calls that a call is compared with, of each kind of evidence."""
MOST_LINKS = 400
"""Items at the end of a request that are searched for earlier answers."""

CHILD_WITHIN = 3600.0
"""Seconds after a tool call in which a thread that its argument starts counts as its child."""
DISTINCT = 24
"""Characters from which a repeated answer alone shows that a conversation continues."""


@dataclass(slots=True, eq=False)
class Thread:
    id: str
    calls: list[Call] = field(default_factory=list)
    parent: Thread | None = None
    children: list[Thread] = field(default_factory=list)
    session: tuple[str, str] | None = None


@dataclass(slots=True, eq=False)
class _Member:
    """A call in the index, with the call that it continues."""

    call: Call
    thread: Thread
    continues: Call | None = None
    retry: bool = False
    chain: int = 0
    continued: bool = False  # a later call continues this one


type _Index[Key] = defaultdict[Key, deque[_Member]]


def _index() -> _Index[object]:
    return defaultdict(lambda: deque(maxlen=MOST_CANDIDATES))


class Groups:
    def __init__(self) -> None:
        self.threads: dict[str, Thread] = {}  # in the order of their start
        self.members: dict[str, _Member] = {}  # by the call's id
        self._responses: dict[str, _Member] = {}
        self._conversations: dict[tuple[str, str], Thread] = {}
        self._sessions: dict[tuple[str, str], Thread] = {}  # the first thread of each
        self._chains: _Index[object] = _index()
        self._answers: _Index[object] = _index()
        self._lasts: _Index[object] = _index()
        self._arguments: _Index[object] = _index()

    def __contains__(self, id: str) -> bool:
        return id in self.members

    def add(self, call: Call) -> Thread:
        """Add a call whose id is new. Return its thread."""
        thread, continued, retry = self._find(call)
        if thread is None:
            thread = self._new(call)
        member = _Member(call, thread, continued.call if continued else None, retry, _chain(call))
        if continued:
            continued.continued = True
        _insert(thread.calls, call)
        self.members[call.id] = member
        self._note(member)
        self._note_answer(member)
        return thread

    def update(self, call: Call) -> Thread:
        """Replace a call by its present state. It stays in its thread."""
        member = self.members[call.id]
        calls = member.thread.calls
        calls[calls.index(member.call)] = call
        member.call = call
        self._note_answer(member)
        return member.thread

    def remove(self, id: str) -> Thread | None:
        """Remove a call, and its thread if it was its last one. Return the thread if it remains."""
        member = self.members.pop(id, None)
        if member is None:
            return None
        thread = member.thread
        thread.calls.remove(member.call)
        if (response := member.call.response_id) and self._responses.get(response) is member:
            del self._responses[response]
        self._forget(member)
        if thread.calls:
            return thread
        del self.threads[thread.id]
        if thread.parent:
            thread.parent.children.remove(thread)
        for child in thread.children:
            child.parent = None
        if thread.session and self._sessions.get(thread.session) is thread:
            del self._sessions[thread.session]
        return None

    # The call that a call continues

    def _find(self, call: Call) -> tuple[Thread | None, _Member | None, bool]:
        """The thread of a call, the call that it continues, and whether it repeats that one after a failure."""
        if again := self._retried(call):
            return again.thread, again, True
        if call.previous:
            before = self._responses.get(call.previous)
            if before and self._exists(before) and before.call.address == call.address:
                return before.thread, before, False
            return self._named(call, f"response {call.previous}") or self._awaited(call), None, False
        if call.conversation:
            return self._named(call, f"conversation {call.conversation}"), None, False
        found = self._best(call)
        return (found.thread, found, False) if found else (self._awaited(call), None, False)

    def _named(self, call: Call, name: str) -> Thread | None:
        """The thread of a response or a conversation that only later calls have named."""
        known = self._conversations.get((call.address, name))
        return known if known and known.id in self.threads else None

    def _awaited(self, call: Call) -> Thread | None:
        """The thread whose first call continues this one: the responses of a WebSocket are read before calls that started after it."""
        return self._named(call, f"response {call.response_id}") if call.response_id else None

    def _exists(self, member: _Member) -> bool:
        return self.members.get(member.call.id) is member

    def _retried(self, call: Call) -> _Member | None:
        """The failed call that this one repeats."""
        for member in reversed(self._chains.get(_chain(call), ())):
            before = member.call
            if not self._exists(member) or not _same(before, call) or not _equal(before, call):
                continue
            ended = before.ended is None or before.ended <= call.started + 0.001
            if (before.broken and ended) or call.retried:
                return member
        return None

    def _best(self, call: Call) -> _Member | None:
        best: tuple[float, ...] = ()
        found = None
        for member in self._candidates(call):
            if member.call is call or not self._exists(member) or not _same(member.call, call):
                continue
            score = _score(member.call, call)
            if not score:
                continue
            rank = (
                score,
                member.call.cache_key == call.cache_key,
                not member.continued,
                common_prefix(member.call.prompt.keys, call.prompt.keys),
                member.call.started,
            )
            if rank > best:
                best, found = rank, member
        return found

    def _candidates(self, call: Call) -> Iterator[_Member]:
        seen: set[str] = set()
        keys = call.prompt.keys
        places: list[tuple[_Index[object], object]] = []
        chains = list(_chains(keys))
        places += [(self._chains, chain) for chain in chains[-MOST_LINKS - 1 : -1][::-1]]
        places += [(self._answers, key) for key in call.results[-MOST_LINKS:][::-1]]
        places += [(self._lasts, key) for key in keys[-MOST_LINKS:][::-1]]
        found = 0
        for index, key in places:
            for member in reversed(index.get(key, ())):
                if member.call.id not in seen:
                    seen.add(member.call.id)
                    found += 1
                    yield member
                    if found >= 4 * MOST_CANDIDATES:
                        return

    # New threads

    def _new(self, call: Call) -> Thread:
        thread = Thread(call.id)
        self.threads[thread.id] = thread
        parent = self._caller(call)
        if call.session:
            thread.session = call.address, call.session
            parent = parent or self._sessions.get(thread.session)
            self._sessions.setdefault(thread.session, thread)
        if parent and parent is not thread:
            thread.parent = parent
            parent.children.append(thread)
        if call.previous:
            self._conversations[call.address, f"response {call.previous}"] = thread
        if call.conversation:
            self._conversations[call.address, f"conversation {call.conversation}"] = thread
        return thread

    def _caller(self, call: Call) -> Thread | None:
        """The thread with a tool call whose argument is the first message of a new thread."""
        if call.first_key is None:
            return None
        for member in reversed(self._arguments.get(call.first_key, ())):
            before = member.call
            recent = before.started <= call.started <= (before.ended or call.started) + CHILD_WITHIN
            if recent and self._exists(member) and _related(before, call):
                return member.thread
        return None

    # The index

    def _note(self, member: _Member) -> None:
        keys = member.call.prompt.keys
        if keys:
            self._chains[member.chain].append(member)
            self._lasts[keys[-1]].append(member)

    def _note_answer(self, member: _Member) -> None:
        call = member.call
        if call.response_id:
            self._responses[call.response_id] = member
        for key in call.answers:
            if member not in (known := self._answers[key]):
                known.append(member)
        for key in call.arguments:
            if member not in (known := self._arguments[key]):
                known.append(member)

    def _forget(self, member: _Member) -> None:
        call, keys = member.call, member.call.prompt.keys
        places = [(self._chains, member.chain), *((self._lasts, key) for key in keys[-1:])]
        places += [*((self._answers, key) for key in call.answers), *((self._arguments, key) for key in call.arguments)]
        for index, key in places:
            if (known := index.get(key)) is not None and member in known:
                known.remove(member)
                if not known:
                    del index[key]


def _insert(calls: list[Call], call: Call) -> None:
    """Insert a call in the order of the start."""
    at = len(calls)
    while at and calls[at - 1].started > call.started:
        at -= 1
    calls.insert(at, call)


def _same(one: Call, other: Call) -> bool:
    """Whether two calls are of the same API, client and session, so that one may continue the other."""
    return one.kind == other.kind and _related(one, other)


def _related(one: Call, other: Call) -> bool:
    """Whether two calls are of the same client and session. The programs of one session may differ."""
    known = not one.client or not other.client or one.client == other.client  # the name of a running call is unknown
    place = one.session == other.session and one.address == other.address
    return known and place and (one.session is not None or one.agent == other.agent)


def _equal(one: Call, other: Call) -> bool:
    a, b = one.prompt, other.prompt
    same = a.items == b.items and a.system == b.system and a.tools == b.tools and a.format == b.format
    return same and one.model == other.model and one.previous == other.previous and one.conversation == other.conversation


def _chains(keys: Sequence[int]) -> Iterator[int]:
    chain = 0
    for key in keys:
        chain = hash((chain, key))
        yield chain


def _chain(call: Call) -> int:
    chain = hash((call.previous, call.conversation)) if call.previous or call.conversation else 0
    for key in call.prompt.keys:
        chain = hash((chain, key))
    return chain


def _score(before: Call, call: Call) -> float:
    """How surely a call continues an earlier one; 0 if it does not.

    It does if it repeats the whole earlier request and adds to it, or repeats its answer. A request in which an earlier message was edited
    repeats at least the last message or the answer.
    """
    earlier, keys = before.prompt.keys, call.prompt.keys
    if not earlier or len(keys) <= 1:
        return 0
    repeats = common_prefix(earlier, keys) == len(earlier) < len(keys)
    results = set(call.results)
    answered = sum(key in results for key in before.answers)
    if repeats:
        return 5 if answered else 3
    if answered:
        later = set(keys)
        if before.tool_calls or earlier[-1] in later:
            return 4
        same = before.prompt.system == call.prompt.system != 0 and len(keys) > len(earlier)
        return 2 if before.answer_size >= DISTINCT or same else 0
    if len(keys) > len(earlier) > 1 and family(before.model) == family(call.model):
        later = set(keys)
        shared = sum(key in later for key in earlier)
        if earlier[-1] in later and 2 * shared >= len(earlier):
            return 1
    return 0


def family(model: str | None) -> str:
    """`gpt-4o-mini-2024-07-18` → `gpt-4o`: models that take over each other's conversations."""
    parts = (model or "").lower().split("-")
    return "-".join(parts[:2])
