"""Raw first: a run's folder with samples.jsonl, written as requests end, and run.json, written first and last.

A run that is killed leaves both readable: every sample is a whole line, and run.json is replaced, never rewritten. A
run that goes on later appends to the one and adds itself to the other.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

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
        self.process = 0
        self._before: str | None = None
        self._clocks = process(self.process)
        self.folder = _new_folder(results, f"{now:%Y%m%d-%H%M%S}-{name}")
        self.run = self.folder.name
        self.complete = 0
        self.other = 0
        self._run: dict[str, Any] = {
            "schema": SCHEMA,
            "run": self.run,
            "tool": {"name": "tokenclock", "version": __version__},
            "created": _said(now),
            "command": _command(),
            "plan": plan,
            "configs": configs,
            "waves": waves,
            "seed": seed,
            "options": redaction.options(options),
            "endpoints": [],
            "machine": machine(),
            "versions": versions(),
            "processes": [self._clocks],
            "client": [],
            "server_metrics": [],
            "calibration": None,
            "dataset": None,
            "shared_prefix_tokens": 0,
            "open_loop": None,
            "distributed": None,
            "resumed": [],
            "interrupted": True,  # until it is closed otherwise
        }
        self._samples = _opened(self.folder)
        self._write()

    @classmethod
    def reopened(cls, folder: Path) -> Recorder:
        """The folder of a run that was interrupted, to go on in; nothing is written there before `go_on`.

        Raises: BlockingIOError where a process still writes there, other OSErrors.
        """
        recorder = cls.__new__(cls)
        recorder._before = (folder / "run.json").read_text(encoding="utf-8")
        recorder._run = json.loads(recorder._before)
        recorder.folder, recorder.run = folder, recorder._run["run"]
        recorder.complete = recorder.other = 0
        recorder.process = 1 + max((each["process"] for each in recorder._run["processes"]), default=-1)
        recorder._clocks = process(recorder.process)
        recorder._samples = _opened(folder)
        return recorder

    def go_on(self) -> int:
        """From here on as a further process of the run; half a last line is cut off. Returns its bytes."""
        cut_bytes = _without_half_a_line(self.folder / "samples.jsonl")
        self._run["processes"].append(self._clocks)
        here = machine()
        self._run.setdefault("resumed", []).append(
            {
                "process": self.process,
                "at": _said(datetime.now(UTC)),
                "command": _command(),
                "cut_bytes": cut_bytes,
                "machine": None if here == self._run["machine"] else here,
            }
        )
        self._run["interrupted"] = True
        self._write()
        return cut_bytes

    @property
    def measured(self) -> list[dict[str, Any]]:
        """The endpoints, as in run.json."""
        return list(self._run["endpoints"])

    def release(self) -> None:
        """Leave the folder to others, as it is."""
        self._samples.close()

    def discard(self) -> None:
        """Nothing was measured: leave run.json as it was before, or no folder, except a server's log that says why."""
        if self._before is not None:
            self._replace(self._before)
            return
        for name in ("samples.jsonl", "run.json"):
            (self.folder / name).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def endpoint(
        self, config: str | None, url: str, protocol: str, info: dict[str, Any] | None, command: str | None
    ) -> None:
        """The same one once more, in a run that goes on, is said once."""
        said = {
            "config": config,
            "protocol": protocol,
            "url": redaction.hidden(url),
            "info": redaction.hidden(info),
            "command": redaction.hidden(command),
        }
        if not any({**known, "info": None} == {**said, "info": None} for known in self._run["endpoints"]):
            self._run["endpoints"].append(said)
        self._write()

    def shared_prefix(self, tokens: int) -> None:
        self._run["shared_prefix_tokens"] = tokens
        self._write()

    def dataset(self, said: dict[str, Any]) -> None:
        """Where the prompts come from. Once more at the end: how many were drawn is known then."""
        self._run["dataset"] = said
        self._write()

    def open_loop(self, arrivals: Arrivals, run_time_s: float, users: int) -> None:
        """What the schedule is, before any of it: however the run ends, it was no closed loop. See run.schema.json."""
        self._run["open_loop"] = {
            "kind": arrivals.kind,
            "rate_per_s": arrivals.rate_per_s,
            "burstiness": arrivals.burstiness,
            "run_time_s": run_time_s,
            "users": users,
            "taken": None,
            "late": None,
            "unsent": None,
        }
        self._write()

    def schedule(self, taken: int, late: int, unsent: int) -> None:
        """What became of an open loop's schedule, or of as much of it as there was."""
        self._run["open_loop"] |= {"taken": taken, "late": late, "unsent": unsent}
        with suppress(OSError):  # no room: the end of the run says so
            self._write()

    def client(self, cell: Cell, seen: dict[str, Any], process: int | None = None) -> None:
        """How late a process of the client was and what it burned, during one cell. process: None is this one."""
        by = self.process if process is None else process
        self._run["client"].append({"process": by, **cell.named(), **seen})
        with suppress(OSError):  # no room: the next sample says so
            self._write()

    def workers(self, processes: list[dict[str, Any]]) -> None:
        """The processes that measure, in this one's place: `machine.process` of each."""
        self._run["processes"] = processes
        self._run["distributed"] = {"workers": [], "missing": []}
        self._write()

    def distributed(self, workers: list[dict[str, Any]], missing: list[str]) -> None:
        """What came of each worker, and what did not come: see run.schema.json."""
        self._run["distributed"] = {"workers": workers, "missing": missing}
        self._write()

    @property
    def calibrated(self) -> bool:
        return bool((self._run.get("calibration") or {}).get("loads"))

    def server_metrics(self, read: dict[str, Any] | None) -> None:
        """The server's own metrics before and after one cell: see run.schema.json. None where it has none."""
        if read is not None:
            only = {"process": self.process} if self._run.get("resumed") else {}
            self._run.setdefault("server_metrics", []).append(read | only)

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
        self.release()
        self._clocks["end"] = clocks()
        self._run["interrupted"] = interrupted
        self._write()

    def _write(self) -> None:
        self._replace(json.dumps(self._run, indent=1, ensure_ascii=False) + "\n")

    def _replace(self, content: str) -> None:
        part = self.folder / "run.json.part"
        part.write_text(content, encoding="utf-8")
        part.replace(self.folder / "run.json")


def _opened(folder: Path) -> TextIO:
    """samples.jsonl for one writer: what another process appended meanwhile would be taken for this run's.

    Raises: BlockingIOError where there is one.
    """
    samples = (folder / "samples.jsonl").open("a", encoding="utf-8", buffering=1)
    try:
        fcntl.flock(samples, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel drops it with the process, however that ends
    except BlockingIOError:
        samples.close()
        raise
    except OSError:  # a file system without locks
        pass
    return samples


def _without_half_a_line(path: Path) -> int:
    """Cut off what a killed process left behind the last line's end; returns how many bytes."""
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        if not size:
            return 0
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            end = content.rfind(b"\n") + 1
        file.truncate(end)
    return size - end


def _said(instant: datetime) -> str:
    return instant.isoformat(timespec="seconds").replace("+00:00", "Z")


def _command() -> list[str]:
    name = "tokenclock" if sys.argv[0].endswith("__main__.py") else Path(sys.argv[0]).name
    return [name, *redaction.command(sys.argv[1:])]


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
