"""Log lines for machines and people: one event with named values each, as JSON or as `key=value` (logfmt), on stderr.

Modules log through the standard library, values in `extra`; structlog renders those lines, uvicorn's and the
libraries' alike. What clients send or are sent is in no line: their values are counts and times, and of an exception
that isn't ours the message is left out, which may quote its input.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from typing import Any, Literal, TextIO

import orjson
import structlog
from structlog.contextvars import merge_contextvars
from structlog.typing import EventDict, Processor

Format = Literal["json", "text"]
FIRST = ["timestamp", "level", "logger", "event", "request_id"]
OURS = ("server", "__main__", "root")


def configure(style: Format | None = None, level: str = "info", stream: TextIO | None = None) -> None:
    """Replace whatever the root logger does. Without a style: text on a terminal, JSON elsewhere."""
    stream = stream or sys.stderr
    if style is None:
        style = "text" if stream.isatty() else "json"
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter(style))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)


def include_transformers() -> None:
    """transformers prints its warnings itself, unless it is told to hand them on."""
    from transformers.utils import logging as theirs

    theirs.disable_default_handler()
    theirs.enable_propagation()


def formatter(style: Format) -> logging.Formatter:
    render: Processor = as_json if style == "json" else AsText()
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            merge_contextvars,  # the request's id, wherever a line is written for it
            structlog.stdlib.ExtraAdder(),
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[told_exception, structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
    )


def told_exception(_: Any, __: str, event: EventDict) -> EventDict:
    """Frames and kinds of an exception and its causes, without anybody's local values."""
    if not (given := event.pop("exc_info", None)):
        return event
    error = given[1] if isinstance(given, tuple) else given
    if isinstance(error, BaseException):
        if event.get("logger", "").split(".")[0] in OURS:
            event["exception"] = "".join(traceback.format_exception(error)).rstrip()
        else:
            event["exception"] = "\n".join(without_messages(error))
    return event


def without_messages(error: BaseException) -> Iterator[str]:
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        yield from without_messages(cause)
        yield "then:"
    yield "".join(traceback.format_tb(error.__traceback__)).rstrip()
    yield type(error).__qualname__


def as_json(_: Any, __: str, event: EventDict) -> str:
    ordered = {key: event.pop(key) for key in FIRST if key in event}
    return orjson.dumps({**ordered, **event}, default=str, option=orjson.OPT_NON_STR_KEYS).decode()


class AsText:
    """logfmt; a traceback stands below its line."""

    def __init__(self) -> None:
        self._line = structlog.processors.LogfmtRenderer(key_order=FIRST, drop_missing=True, bool_as_flag=False)

    def __call__(self, logger: Any, method: str, event: EventDict) -> str:
        exception = event.pop("exception", None)
        line = self._line(logger, method, event)
        return line if exception is None else f"{line}\n{exception}"
