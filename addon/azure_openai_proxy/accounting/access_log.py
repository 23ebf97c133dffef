"""The access log: one line of JSON for each request, with the fields of `FIELDS`. It contains no key and no text of a message.

A thread writes the lines, so that a slow disk or a full pipe does not delay requests. The file is opened again on SIGHUP, and when another
program has renamed or removed it, which Windows does not permit.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import stat
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from azure_openai_proxy.errors import SettingsError

from .json_lines import Field, Lines, time_texts
from .record import lengths, milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from azure_openai_proxy.config.settings import Settings

    from .record import CallRecord
    from .sink import LiveState

__all__ = ["FIELDS", "AccessLog", "open_sink", "write"]

logger = logging.getLogger(__name__)

STDOUT = "-"
EVERY = 0.25
"""Seconds for which lines are collected before they are written."""
MOST = 10_000
"""Number of lines that wait for the disk. Further ones are lost."""
CLOSE_WITHIN = 5.0
"""Seconds to write the last lines."""
MODE = 0o600


FIELDS = (
    Field("time", "arrival of the request, RFC 3339 with milliseconds", "time", time_texts),
    Field("request_id", "`x-request-id` of the response, as the client gets it", "request_id"),
    Field("trace_id", "of the client's `traceparent`, or a new one", "trace_id"),
    Field("client", "configured name of the client's key; empty without one", "client"),
    Field("client_ip", "address of the client's connection", "client_ip"),
    Field(
        "session",
        "`x-session-affinity`, the session header of a coding agent, `prompt_cache_key`, or the first of a chain of `previous_response_id`",
        "session",
    ),
    Field("method", "HTTP method", "method"),
    Field("path", "path that the client requested, without the query", "path"),
    Field("operation", "OpenAI's family of paths: `chat.completions`, `responses`, `embeddings`, ... or `other`", "operation"),
    Field("model", "model that the client named", "model"),
    Field("deployment", "deployment requested at Azure", "deployment"),
    Field("served_deployment", "deployment that answered, as Azure's headers say", "served_deployment"),
    Field("spillover", "whether another deployment than the requested one answered, as Azure's headers say", "spillover"),
    Field("backend", "name of the backend of the last attempt", "backend"),
    Field(
        "reason",
        "why that backend: `only`, `owner`, `bound`, `priority`, `weight`, `probe`, or `failover from` the name of the previous one",
        "reason",
    ),
    Field("response_model", "model that answered", "response_model"),
    Field("model_selection_details", "what Azure's model router says about its choice, as in the response", "model_selection_details"),
    Field("response_id", "id of the response", "response_id"),
    Field("service_tier_requested", "`service_tier` of the request", "service_tier_requested"),
    Field("service_tier", "`service_tier` of the response", "service_tier"),
    Field("status", "HTTP status; null: the client disconnected before any response", "status"),
    Field("error_code", "code of the error, Azure's or the proxy's", "error_code"),
    Field("stream", "whether the response is a stream of events", "stream"),
    Field("incomplete", "who ended the response early: `client` or `upstream`", "incomplete"),
    Field("in_websocket", "whether the line is about one response of a WebSocket, which has its own line", "in_websocket"),
    Field("attempts", "number of attempts at backends", "attempts", lengths),
    Field("repairs", "list of the repairs of the request", "repairs"),
    Field("usage", "`known`, `unknown`, or `none` if the operation reports no usage or failed", "usage_state"),
    Field("input_tokens", "input tokens, all kinds together", "tokens.input"),
    Field("cached_input_tokens", "input tokens read from the prompt cache, a part of the input", "tokens.cached_input"),
    Field(
        "cache_write_input_tokens",
        "input tokens written to the prompt cache, a part of the input",
        "tokens.cache_write_input",
    ),
    Field("audio_input_tokens", "input tokens of audio, a part of the input", "tokens.audio_input"),
    Field("output_tokens", "output tokens, all kinds together", "tokens.output"),
    Field("reasoning_output_tokens", "output tokens of reasoning, a part of the output", "tokens.reasoning_output"),
    Field("audio_output_tokens", "output tokens of audio, a part of the output", "tokens.audio_output"),
    Field("cost_usd", "cost in USD; null: unknown usage, or no price", "cost_usd"),
    Field("duration_ms", "time to the end of the response", "duration", milliseconds),
    Field("first_byte_ms", "time to the first byte of the response body", "first_byte", milliseconds),
    Field("overhead_ms", "time that the proxy added; null for streamed uploads and WebSockets", "overhead", milliseconds),
    Field("request_bytes", "size of the request body; null: it was not read", "request_bytes"),
    Field("response_bytes", "size of the response body, as sent to the client", "response_bytes"),
    Field("user_agent", "`user-agent` of the client", "user_agent"),
)
"""The members in their order. Unknown values are null."""

write = Lines(FIELDS)


def open_sink(settings: Settings) -> AccessLog:
    return AccessLog(settings.access_log)


class _Job(NamedTuple):
    """What the thread has to do: write lines, after opening the file again if `reopen` is true."""

    text: str
    lines: int
    reopen: bool


class AccessLog:
    """Writes the lines. `record` makes and collects them, a timer passes them to the thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: _File | None = None
        self._lines: list[str] = []  # each several lines
        self._collected = 0  # lines in it
        self._waiting = 0  # lines that are not written yet
        self._lost = 0
        self._failing = False
        self._timer: asyncio.TimerHandle | None = None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._ended = asyncio.Event()

    async def start(self, live: Callable[[], LiveState]) -> None:  # noqa: ARG002 - the interface of a sink
        try:
            self._file = _File(self._path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise SettingsError(f"azure_openai_access_log: cannot write {self._path}: {reason}") from None
        loop = asyncio.get_running_loop()
        # A daemon thread: a pipe without a reader must not keep the process alive.
        threading.Thread(target=self._work, args=(loop, self._file), name="access log", daemon=True).start()

    def record(self, calls: Sequence[CallRecord]) -> None:
        room = max(0, MOST - self._waiting)
        taken = calls if len(calls) <= room else calls[:room]
        self._lost += len(calls) - len(taken)
        self._lines.append(write(taken))
        self._collected += len(taken)
        self._waiting += len(taken)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(EVERY, self._pass_on)

    def _pass_on(self, *, reopen: bool = False) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._lines or reopen:
            self._jobs.put(_Job("".join(self._lines), self._collected, reopen))
            self._lines, self._collected = [], 0

    def reopen(self) -> None:
        self._pass_on(reopen=True)

    async def close(self) -> None:
        self._pass_on()
        self._jobs.put(None)
        try:
            async with asyncio.timeout(CLOSE_WITHIN):
                await self._ended.wait()
        except TimeoutError:
            logger.warning("The access log is not complete: %s does not take the last %d lines", self._path, self._waiting)
        if self._lost:
            logger.warning("The access log is not complete: %d lines were lost", self._lost)

    # In the thread

    def _work(self, loop: asyncio.AbstractEventLoop, file: _File) -> None:
        while (job := self._jobs.get()) is not None:
            error: Exception | None = None
            try:
                file.follow(anew=job.reopen)
            except OSError as failed:
                error = failed
            try:
                file.write(job.text)
                lost = 0
            except Exception as failed:  # noqa: BLE001 - `_written` logs it
                error, lost = failed, job.lines
            _call_soon(loop, self._written, job.lines, lost, error)
        file.close()
        _call_soon(loop, self._ended.set)

    # On the loop

    def _written(self, count: int, lost: int, error: Exception | None) -> None:
        self._waiting -= count
        self._lost += lost
        if error:
            if not self._failing:
                logger.error("The access log cannot be written: %s: %s", self._path, getattr(error, "strerror", None) or error)
        elif self._lost and self._waiting < MOST:
            logger.warning("The access log is not complete: %d lines were lost", self._lost)
            self._lost = 0
        self._failing = error is not None


def _call_soon(loop: asyncio.AbstractEventLoop, what: Callable[..., None], *arguments: object) -> None:
    try:
        loop.call_soon_threadsafe(what, *arguments)
    except RuntimeError:  # pragma: no cover - the loop was closed before the last line was written
        return


def _ends_within_a_line(file: int, path: str) -> bool:
    """Whether a regular file does not end with a newline. `file` can only be written."""
    found = os.fstat(file)
    if not found.st_size or not stat.S_ISREG(found.st_mode):
        return False
    try:
        with Path(path).open("rb") as content:
            content.seek(-1, os.SEEK_END)
            return content.read() != b"\n"
    except OSError:  # it may not be read
        return False


class _File:
    """A file that is opened again when another one has its name; or standard output."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = -1
        self._broken = False  # it ends within a line, as after a write to a full disk
        if path != STDOUT:
            self._file = self._opened()

    def _opened(self) -> int:
        # Opening a named pipe without a reader would block; with O_NONBLOCK it is an error. Without O_BINARY, Windows would write \r\n.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        for name in ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY"):
            flags |= getattr(os, name, 0)
        file = os.open(self._path, flags, MODE)
        if hasattr(os, "O_NONBLOCK"):  # pragma: no branch - not on Windows
            os.set_blocking(file, True)
        self._broken = _ends_within_a_line(file, self._path)
        return file

    def follow(self, *, anew: bool) -> None:
        """Open the file again if it was renamed or removed, or in any case.

        Raises:
            OSError: that failed; the previous file stays in use.
        """
        if self._path != STDOUT and (anew or self._moved()):
            file = self._opened()
            self.close()
            self._file = file

    def _moved(self) -> bool:
        try:
            there, here = Path(self._path).stat(), os.fstat(self._file)
        except OSError:
            return True
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)

    def write(self, text: str) -> None:
        if self._path == STDOUT:
            sys.stdout.write(text)
            sys.stdout.flush()
            return
        data = text.encode()
        if data and self._broken:
            data = b"\n" + data
        while data:
            written = os.write(self._file, data)
            self._broken = data[written - 1 : written] != b"\n"
            data = data[written:]

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
