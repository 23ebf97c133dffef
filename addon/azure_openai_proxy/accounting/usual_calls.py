"""The records of usual calls, in less than half of the time that `record_making` takes.

A usual call had one attempt, and Azure's response was buffered and has a usage. Its kind and its path follow from some values as the client
and Azure have sent them. What `Meter.complete` returns for the first such call is remembered by these values, so that later ones need only
the members of their own. All other calls are left to `Meter.complete`.
"""

from __future__ import annotations

import logging
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from azure_openai_proxy import errors
from azure_openai_proxy.api import redaction

from . import trace_context, usage
from .call_kinds import LONGEST, shown_ids, shown_latency
from .record import OWN, AttemptRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from azure_openai_proxy.api.backend import Backend

    from .cost import Tariff
    from .meter import Meter
    from .meters import Meters
    from .record import CallKind, OwnValues

    type _Tariffs = dict[CallKind, Tariff | None]
    type _Row = tuple[CallKind, OwnValues, tuple[str, ...] | None]  # the last: the keys to mask in its ids; None: that is done

__all__ = ["UsualCalls"]

logger = logging.getLogger(__name__)

MOST, LARGEST = 2048, 2048
"""Sets of values that are remembered, and the characters of the largest one."""
MOST_KEYS = 8
"""Keys of a call that is remembered: each of them is searched in its ids, in several forms."""
_REQUEST_ID, _PATH, _RESPONSE_ID, _ONCE = (OWN.index(name) for name in ("request_id", "path", "response_id", "once"))
_tuple = tuple.__new__  # for a named tuple, whose own constructor takes twice as long
_ids = itemgetter(_REQUEST_ID, _RESPONSE_ID)


class _Known:
    """What the calls with the same values have in common."""

    __slots__ = ("_kept", "backend", "chained", "deployment", "host", "kind", "path", "port")

    def __init__(self, kind: CallKind, path: str, backend: Backend) -> None:
        self.kind, self.path, self.deployment = kind, path, kind.sample.deployment or ""
        self.backend, self.host, self.port = backend.name, backend.base.host, backend.base.port
        self._kept = backend  # so that no other one gets its `id`, which is one of the values
        self.chained = kind.sample.operation == "responses" and kind.sample.method == "POST"


class UsualCalls:
    """Makes the records of calls that have ended, and remembers the usual ones."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._known: dict[tuple[object, ...], _Known] = {}

    def complete(self, ended: Iterable[Meter]) -> tuple[Sequence[CallKind], Sequence[OwnValues]]:
        """Make the records of calls after `Meter.end_soon`. Return their kinds, and the members of their own."""
        tariffs: _Tariffs = {}
        rows: list[_Row] = []
        for meter in ended:
            try:
                rows.append(self._row(meter, tariffs) or (*meter.complete(), None))
                meter.ended = None  # its values are not kept as long as its flow
            except Exception:
                logger.exception("A request is not accounted for")
        if not rows:
            return (), ()
        kinds, own, keys = zip(*rows, strict=True)
        if keys.count(keys[0]) == len(keys):
            if _are_plain(own, keys[0]):
                return kinds, own
            own = tuple([_with_shown_ids(one, keys[0]) for one in own])
        else:  # each call has the keys of its client, and is searched for these alone
            each = zip(own, keys, strict=True)
            own = tuple([one if _are_plain((one,), secrets) else _with_shown_ids(one, secrets) for one, secrets in each])
        return kinds, own

    def _row(self, meter: Meter, tariffs: _Tariffs) -> _Row | None:
        """Make the record of a usual call; None for any other one."""
        call, attempts = meter.call, meter.attempts
        assert meter.ended
        now, status, size, keys, kept = meter.ended
        if kept is None or size is None or call is None or call.details is None or len(attempts) != 1:
            return None
        last, arrived = attempts[0], meter.arrived
        cache_key, previous, tier_requested, effort, _ = call.details
        reasons, code, used, model, response_id, tier, fingerprint, state, background, latency, incomplete, selection = kept
        if (
            cache_key
            or previous
            or meter.session_header
            or meter.trace is not trace_context.NONE
            or last.ended is not None
            or code is not None
            or background is True
            or incomplete is not None
            or selection is not None
            or (response_id is not None and (type(response_id) is not str or not response_id))
            or type(used) is not dict
            or (tokens := usage.tokens(used)) is None
            or tokens.input is None
        ):
            return None
        # All members that calls have in common follow from these values, and the path.
        key = (
            keys,
            meter.target,
            call.method,
            call.path,
            call.model or meter.frame_model,
            call.stream,
            last.deployment,
            id(last.backend),
            last.reason,
            last.repairs,
            tier_requested,
            effort,
            meter.raw_user_agent,
            meter.client,
            meter.served,
            meter.spillover,
            status,
            tokens.output is None,
            model,  # the upstream has chosen this value and the following ones
            tier,
            fingerprint,
            reasons,
            state,
        )
        try:
            known = self._known.get(key)
        except TypeError:  # one of them is a list or an object
            return None
        if known is None:
            return self._first(meter, key)
        if known.chained and response_id:  # a later response may continue it
            if not _is_plain(response_id, len(response_id), keys):
                return None
            self._meters.chains.add(response_id, response_id)
        kind, backend, limits = known.kind, known.backend, meter.limits
        if limits is not None and known.deployment:
            self._meters.note_limits(backend, known.deployment, limits)
        if kind not in tariffs:
            tariffs[kind] = self._meters.tariff(kind.sample)
        tariff, overhead, idle, wall = tariffs[kind], meter.overhead, meter.idle_from, meter.time - arrived
        if idle is not None and overhead is not None and now > idle:
            overhead += now - idle
        duration, started, ended = now - arrived, last.started, max(now, last.started)
        trace_id, span_id = trace_context.new_ids()
        own = (  # in the order of `OWN`
            tokens,
            meter.time,
            meter.raw_request_id.decode("utf-8", "surrogateescape") if meter.raw_request_id else errors.request_id(),
            trace_id,
            span_id,
            "",
            True,
            meter.client_ip,
            None,
            known.path,
            None,
            (_tuple(AttemptRecord, (backend, known.deployment, "ok", wall + started, wall + ended, known.host, known.port)),),
            response_id,
            meter.request_bytes,
            size,
            shown_latency(usage.latencies(latency), keys) if latency else None,
            None,
            tariff.usd(tokens) if tariff else None,
            None,
            None,
            duration,
            duration if size else None,
            None,
            overhead,
        )
        return kind, own, keys

    def _first(self, meter: Meter, key: tuple[Any, ...]) -> _Row:
        """Make the record of a call whose values are not known, and remember it if it is usual."""
        backend = meter.attempts[-1].backend
        kind, own = meter.complete()
        sample, (keys, target, *others) = kind.sample, key
        texts = [*keys, *target, *chain.from_iterable(map(_texts, others))]
        usual = sample.usage_state == "known" and not (sample.incomplete or sample.error_code or own[_ONCE]) and len(keys) <= MOST_KEYS
        # An upstream could choose the hashes of numbers.
        if usual and all(value is None or type(value) in (str, tuple) for value in key[-5:]) and sum(map(len, texts)) <= LARGEST:
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[key] = _Known(kind, own[_PATH], backend)
        return kind, own, None


def _texts(value: object) -> Sequence[str | bytes]:
    return value if isinstance(value, tuple) else (value,) if isinstance(value, str | bytes) else ()


def _are_plain(own: Sequence[OwnValues], keys: tuple[str, ...] | None) -> bool:
    """Whether the ids of these calls are shown as they are, which is nearly always the case. `keys`: None if they are shown already."""
    if keys is None:
        return True
    ids = list(filter(None, chain.from_iterable(map(_ids, own))))
    return _is_plain("".join(ids), max(map(len, ids)), keys)


def _is_plain(text: str, longest: int, keys: tuple[str, ...]) -> bool:
    """Whether ids are shown as they are. `text`: all of them, of which the longest one has `longest` characters."""
    return text.isascii() and text.isprintable() and longest <= LONGEST // 2 and not redaction.repeats(text, keys)


def _with_shown_ids(own: OwnValues, keys: tuple[str, ...] | None) -> OwnValues:
    """Return the members with the ids as a record has them."""
    changed = list(own)
    changed[_REQUEST_ID], changed[_RESPONSE_ID] = shown_ids(own[_REQUEST_ID], usage.valid_name(own[_RESPONSE_ID]), keys or ())
    return tuple(changed)
