"""Raw first: a run's folder with samples.jsonl, written as requests end, and run.json, written first and last.

A run that is killed leaves both readable: every sample is a whole line, and run.json is replaced, never rewritten.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadtest import __version__, redaction
from loadtest.arrivals import Arrivals
from loadtest.machine import clocks, machine, process, versions
from loadtest.plan import Cell
from loadtest.sample import SCHEMA, Sample

COMPLETE = b'"verdict":"complete"'  # as `Sample.to_json` writes it: in a text the quotes would be escaped


class Recorder:
    """Owns the folder of one run. `run` is its name: UTC date, time, and what was run."""

    def __init__(
        self,
        results: Path,
        name: str,
        *,
        plan: str | None,
        configs: list[str],
        waves: int | None,
        seed: int,
        options: dict[str, Any],
    ) -> None:
        """`configs`: the configurations that will be measured, so that a run cut short can say what is missing."""
        now = datetime.now(UTC)
        self.folder = _new_folder(results, f"{now:%Y%m%d-%H%M%S}-{name}")
        self.run = self.folder.name
        self.complete = 0
        self.other = 0
        self._run: dict[str, Any] = {
            "schema": SCHEMA,
            "run": self.run,
            "tool": {"name": "tokenclock", "version": __version__},
            "created": now.isoformat(timespec="seconds").replace("+00:00", "Z"),
            "command": [
                "tokenclock" if sys.argv[0].endswith("__main__.py") else Path(sys.argv[0]).name,
                *redaction.command(sys.argv[1:]),
            ],
            "plan": plan,
            "configs": configs,
            "waves": waves,
            "seed": seed,
            "options": redaction.options(options),
            "endpoints": [],
            "machine": machine(),
            "versions": versions(),
            "processes": [process(0)],
            "client": [],
            "calibration": None,
            "dataset": None,
            "shared_prefix_tokens": 0,
            "open_loop": None,
            "distributed": None,
            "interrupted": True,  # until it is closed otherwise
        }
        self._samples = (self.folder / "samples.jsonl").open("a", encoding="utf-8", buffering=1)
        self._write()

    def endpoint(
        self, config: str | None, url: str, protocol: str, info: dict[str, Any] | None, command: str | None
    ) -> None:
        self._run["endpoints"].append(
            {
                "config": config,
                "protocol": protocol,
                "url": redaction.hidden(url),
                "info": redaction.hidden(info),
                "command": redaction.hidden(command),
            }
        )
        self._write()

    def shared_prefix(self, tokens: int) -> None:
        self._run["shared_prefix_tokens"] = tokens
        self._write()

    def dataset(self, said: dict[str, Any]) -> None:
        """Where the prompts come from. Once more at the end: how many were drawn is known then."""
        self._run["dataset"] = said
        self._write()

    def open_loop(self, arrivals: Arrivals, run_time_s: float, users: int, taken: int, late: int, unsent: int) -> None:
        """What the schedule was, and what became of it: see run.schema.json."""
        self._run["open_loop"] = {
            "kind": arrivals.kind,
            "rate_per_s": arrivals.rate_per_s,
            "burstiness": arrivals.burstiness,
            "run_time_s": run_time_s,
            "users": users,
            "taken": taken,
            "late": late,
            "unsent": unsent,
        }
        self._write()

    def client(self, cell: Cell, seen: dict[str, Any], process: int = 0) -> None:
        """How late a process of the client was and what it burned, during one cell."""
        named = {name: getattr(cell, name) for name in ("config", "concurrency", "input_tokens", "new_tokens")}
        self._run["client"].append({"process": process, **named, **seen})

    def workers(self, processes: list[dict[str, Any]]) -> None:
        """The processes that measure, in this one's place: `machine.process` of each."""
        self._run["processes"] = processes
        self._run["distributed"] = {"workers": [], "missing": []}
        self._write()

    def distributed(self, workers: list[dict[str, Any]], missing: list[str]) -> None:
        """What came of each worker, and what did not come: see run.schema.json."""
        self._run["distributed"] = {"workers": workers, "missing": missing}
        self._write()

    def calibration(self, found: dict[str, Any]) -> None:
        """How wrong the client's own clock is: see run.schema.json. After `close`, too."""
        self._run["calibration"] = found
        self._write()

    def add(self, sample: Sample) -> None:
        self._samples.write(sample.to_json() + "\n")
        if sample.complete:
            self.complete += 1
        else:
            self.other += 1

    def add_lines(self, lines: Sequence[bytes]) -> None:
        """Samples that came as lines of samples.jsonl, without newlines."""
        for line in lines:
            self._samples.write(line.decode("ascii") + "\n")
            if COMPLETE in line:
                self.complete += 1
            else:
                self.other += 1

    def close(self, interrupted: bool) -> None:
        self._samples.close()
        if self._run["distributed"] is None:  # workers say it themselves
            self._run["processes"][0]["end"] = clocks()
        self._run["interrupted"] = interrupted
        self._write()

    def discard(self) -> None:
        """A run without a single request leaves no folder behind, except a server's log that says why."""
        for name in ("samples.jsonl", "run.json"):
            (self.folder / name).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _write(self) -> None:
        part = self.folder / "run.json.part"
        part.write_text(json.dumps(self._run, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(self.folder / "run.json")


def _new_folder(results: Path, name: str) -> Path:
    """Make a folder nobody else has. Raises: OSError where `results` can't be written."""
    results.mkdir(parents=True, exist_ok=True)
    for attempt in range(1000):
        folder = results / (name if attempt == 0 else f"{name}-{attempt + 1}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{results / name} and 999 others exist")
