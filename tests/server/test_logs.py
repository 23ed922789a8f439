"""Every line is one event with named values, whoever logs it, and tells nothing that an exception may have quoted.

Method: records of our own loggers and of a library's through the formatter that the server installs.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from structlog.contextvars import bound_contextvars

from server import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What the server would write on stderr, as JSON; the test process logs as before afterwards."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    logs.configure(level="info", stream=stream)
    yield stream
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_its_time_level_logger_event_and_values(stream: io.StringIO):
    logging.getLogger("server.somewhere").info("ready: %s", "demo", extra={"slots": 4, "ids": ["a", "b"]})
    logging.getLogger("uvicorn.error").debug("not told")
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "server.somewhere",
        "event": "ready: demo",
        "slots": 4,
        "ids": ["a", "b"],
    }


def test_lines_that_are_written_for_a_request_carry_its_id(stream: io.StringIO):
    with bound_contextvars(request_id="4cea"):
        logging.getLogger("somebody.else").warning("odd")
    logging.getLogger("somebody.else").warning("odd")
    assert [line.get("request_id") for line in lines(stream)] == ["4cea", None]


@pytest.mark.parametrize(
    ("logger", "told"), [("server.engine.engine", True), ("uvicorn.error", False), ("asyncio", False)]
)
def test_exceptions_of_others_are_told_by_kind_and_place(stream: io.StringIO, logger: str, told: bool):
    try:
        try:
            raise KeyError("canary")
        except KeyError as error:
            raise ValueError("canary, too") from error
    except ValueError:
        logging.getLogger(logger).exception("it failed")
    (line,) = lines(stream)
    assert line["event"] == "it failed"
    assert "KeyError" in line["exception"]
    assert "ValueError" in line["exception"]
    assert "test_logs.py" in line["exception"]
    assert ("canary, too\n" in line["exception"] + "\n") == told
    assert ("KeyError: 'canary'" in line["exception"]) == told


def test_warnings_are_lines_like_any_other(stream: io.StringIO):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("an old name", DeprecationWarning, stacklevel=1)
    (line,) = lines(stream)
    assert (line["level"], line["logger"]) == ("warning", "py.warnings")


def test_text_is_one_line_of_values_and_tracebacks_stand_below():
    formatter = logs.formatter("text")
    record = logging.LogRecord("server.x", logging.INFO, "", 0, 'said "so" = %s', ("no",), None)
    record.n, record.nothing, record.flag = 3, None, True
    line = formatter.format(record)
    assert line.partition(" ")[0].startswith("timestamp=")
    assert line.partition(" ")[2] == (r'level=info logger=server.x event="said \"so\" = no" n=3 nothing= flag=true')
    try:
        raise ValueError("a fault")
    except ValueError as error:
        record = logging.LogRecord(
            "server.x", logging.ERROR, "", 0, "it failed", (), (ValueError, error, error.__traceback__)
        )
    first, second, *_, last = formatter.format(record).splitlines()
    assert first.endswith('event="it failed"')
    assert second == "Traceback (most recent call last):"
    assert last == "ValueError: a fault"


def test_a_terminal_gets_text_and_anything_else_json(monkeypatch: pytest.MonkeyPatch):
    chosen: list[str] = []
    monkeypatch.setattr(logs, "formatter", lambda style: chosen.append(style) or logging.Formatter())
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(logging, "captureWarnings", lambda _: None)
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    for stream, style in ((terminal, None), (io.StringIO(), None), (terminal, "json"), (io.StringIO(), "text")):
        logs.configure(style, stream=stream)  # type: ignore[arg-type]
    assert chosen == ["text", "json", "json", "text"]
