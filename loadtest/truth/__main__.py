"""The command line of the truth server: `python -m loadtest.truth`. What it promises: `loadtest.truth`."""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import selectors
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from loadtest.truth.schedule import Schedule
from loadtest.truth.server import READ_BYTES, Server
from loadtest.truth.wire import Scripts


def main() -> None:
    defaults: dict[str, Any] = {each.name: each.default for each in fields(Schedule)}
    parser = argparse.ArgumentParser(prog="python -m loadtest.truth", description="a server whose schedule is known")
    add: Callable[..., Any] = partial(parser.add_argument, metavar="N")
    add("--port", type=int, default=0, help="of 127.0.0.1 (default: any free one)")
    add("--first", type=float, default=defaults["first_s"], help="seconds to the first token (default: %(default)s)")
    add("--first-spread", type=float, default=defaults["first_spread"], help="± fraction of it (default: %(default)s)")
    add("--gap", type=float, default=defaults["gap_s"], help="seconds between tokens; 0: drain (default: %(default)s)")
    add("--jitter", type=float, default=defaults["jitter"], help="± fraction of the gap (default: %(default)s)")
    add("--seed", type=int, default=defaults["seed"], help="the same seed and request ids give the same waits")
    add("--tokens-default", type=int, default=128, help="where a request names none (default: %(default)s)")
    add("--event-bytes", type=int, default=0, help="fill every token's event up to so many bytes")
    parser.add_argument("--openai", action="store_true", help="serve OpenAI's routes too")
    add("--cpu", type=int, help="run on this core only")
    add("--record", type=Path, metavar="FILE", help="write the records here at the end, as JSON lines")
    asked = parser.parse_args()
    try:
        schedule = Schedule(asked.first, asked.first_spread, asked.gap, asked.jitter, asked.seed)
        if asked.cpu is not None:
            os.sched_setaffinity(0, {asked.cpu})
    except (ValueError, OSError) as error:
        parser.error(str(error))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the usual soft limit is 1,024, one stream too few
    server = Server(schedule, Scripts(asked.tokens_default, asked.event_bytes), asked.openai, asked.port)

    def stop(*_: object) -> None:
        server.stopping = True

    def stdin_ready(_mask: int) -> None:
        if not os.read(0, READ_BYTES):
            stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with suppress(OSError):  # of a file or /dev/null: it can't close, a signal ends the server
        server.poller.register(0, selectors.EVENT_READ, stdin_ready)
    gc.disable()  # no cycles are made, and a collection would stop all streams
    try:
        os.write(1, json.dumps({"port": server.listener.getsockname()[1]}).encode() + b"\n")
    except BrokenPipeError:  # whoever started it was interrupted meanwhile
        return
    server.serve()
    if asked.record is not None:
        with asked.record.open("wb") as file:
            file.writelines(record.line() for record in server.records)


if __name__ == "__main__":
    main()
