"""Logs as lines of JSON, each with the id of the request that it is about.

A log never has a text of a request or an answer. What our own code logs has none; exceptions of other code may quote
one, so of those only the class and the place are logged, unless the level is `debug`.
"""

from __future__ import annotations

import contextvars
import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

import orjson

from onnxpress.runtime.errors import InvalidInputError, OnnxpressError
from onnxpress.runtime.server.settings import LOG_LEVELS

REQUEST_ID: contextvars.ContextVar[str | None] = contextvars.ContextVar("onnxpress_request_id", default=None)
"""Of the request that a task works for."""

_OURS = "onnxpress"
_LEFT_OUT = "(its text is left out, for it may quote a request; the level debug shows it)"


def configure_logs(level: str = "info") -> None:
    """Send all logs of this process to stderr, as lines of JSON: ours from `level` on, those of libraries from
    `warning` on. For the process of a server; whoever embeds the application configures logging as ever.

    uvicorn must be left from doing the same: `uvicorn.Config(log_config=None, access_log=False)`.

    Args:
        level: debug, info, warning or error.

    Raises:
        InvalidInputError: it is none of them.
    """
    if level not in LOG_LEVELS:
        raise InvalidInputError(f"the level of the log is {level!r}; it may be {', '.join(LOG_LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(quoting=level == "debug"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.ERROR if level == "error" else logging.WARNING)
    logging.getLogger(_OURS).setLevel(level.upper())


class JsonLines(logging.Formatter):
    """A record as one line: `time`, `level`, `logger`, `message`, `request_id` where there is a request, `exception`
    where there is one, and the dictionary `fields` of the record (`extra={"fields": {...}}`)."""

    def __init__(self, *, quoting: bool = False) -> None:
        """
        Args:
            quoting: show the text of all exceptions, also where it may quote a request.
        """
        super().__init__()
        self._quoting = quoting
        self._second = 0, ""  # the last one that was formatted

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "time": self._time(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._message(record),
        }
        request_id = REQUEST_ID.get()
        if request_id is not None:
            line["request_id"] = request_id
        fields = getattr(record, "fields", None)
        if fields:
            line.update(fields)
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = exception_text(record.exc_info[1], quoting=self._quoting)
        try:
            text = orjson.dumps(line).decode()
        except TypeError:  # half a surrogate pair, or an object
            text = ""
        # In ASCII it is JSON whatever stderr's encoding. Mostly it is that at once, and orjson is ten times as fast.
        return text if text and text.isascii() else json.dumps(line, default=str)

    def _time(self, seconds: float) -> str:
        """ISO 8601 in UTC, to the millisecond."""
        second, text = self._second
        if second != int(seconds):
            second = int(seconds)
            text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
            self._second = second, text
        return f"{text}.{int(seconds % 1 * 1000):03d}+00:00"

    def _message(self, record: logging.LogRecord) -> str:
        message = record.getMessage().strip()
        if self._quoting or record.name.split(".")[0] == _OURS:
            return message
        # Of others the first line: asyncio, for one, goes on with what a task's exception says.
        return message.partition("\n")[0]


def exception_text(error: BaseException, *, quoting: bool = False) -> str:
    """The traceback of an exception, after those that led to it and those it groups.

    Args:
        error: that was caught.
        quoting: with what all of them say. False: only with what is known to quote no request.
    """
    parts: list[str] = []
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        said = str(cause) if quoting or _quotes_nothing(cause) else _LEFT_OUT
        frames = "".join(traceback.format_tb(cause.__traceback__))
        parts.append(f"{frames}{type(cause).__module__}.{type(cause).__qualname__}: {said}".rstrip(": "))
        if isinstance(cause, BaseExceptionGroup):
            parts += [exception_text(part, quoting=quoting) for part in cause.exceptions]
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "\nwhich led to:\n".join(reversed(parts))


def _quotes_nothing(error: BaseException) -> bool:
    """Whether what an exception says cannot be a text of a request: errors of the system, of onnxruntime (which knows
    no texts), and our own but those about what a request has."""
    if isinstance(error, OnnxpressError):
        return not isinstance(error, ValueError)
    return isinstance(error, OSError | MemoryError) or type(error).__module__.startswith("onnxruntime.")
