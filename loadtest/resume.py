"""`run --resume DIR`: the options of a run that was interrupted, and its folder to go on in.

The options are those of run.json. What is said besides may be what leaves the figures as they are; the rest is refused,
and so is what was never stored, unless it is said again: keys.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from loadtest import __version__, redaction
from loadtest.arguments import Usage, shown
from loadtest.endpoints.choice import KEYS
from loadtest.kept import Kept, kept
from loadtest.record import Recorder
from loadtest.sample import SampleError, read_samples

#: Options that may be other ones: no figure hangs on them.
FREE = {"resume", "verb", "allow", "no_calibrate", "serve_timeout", "cacert", "api_key"}
#: Those whose values run.json has not.
SECRET: dict[str, Any] = {"api_key": None, "header": []}


def asked_again(folder: Path, parse: Callable[[Mapping[str, Any]], argparse.Namespace]) -> argparse.Namespace:
    """What the command line says on top of what the run was made with. parse: the command line, with these defaults.

    Raises: Usage where it is no such run, or is told to be another.
    """
    run = _run_of(folder)
    if run["plan"] is None:
        raise Usage(
            f"{folder} is a free run, whose rates are those of one uninterrupted stretch: `tokenclock report {folder}` "
            "shows what was measured, and a new run with -t measures the time that is left"
        )
    if run["tool"]["version"] != __version__:
        raise Usage(
            f"{folder} was begun with version {run['tool']['version']}, this is {__version__}: go on with that one, or "
            "begin a new run"
        )
    asked = parse({**run["options"], **SECRET})
    asked.seed = run["seed"] if asked.seed is None else asked.seed  # drawn, where it wasn't said
    for sentence in _contradictions(asked, run["options"] | {"seed": run["seed"]}):
        raise Usage(sentence)
    return asked


def reopened(folder: Path) -> tuple[Recorder, Kept]:
    """A run's folder, for this process alone, and what it holds. Nothing is changed yet.

    Raises: Usage where it can't be gone on with.
    """
    try:
        recorder = Recorder.reopened(folder)
    except BlockingIOError as error:
        raise Usage(f"a process still measures in {folder}: wait for its end, or interrupt it") from error
    except OSError as error:
        raise Usage(f"{folder} can't be gone on with: {error.strerror}") from error
    try:
        return recorder, kept(read_samples(folder / "samples.jsonl"), recorder.measured)
    except SampleError as error:
        recorder.release()
        raise Usage(f"{error}: without that line nobody knows what is left of the run; begin a new one") from error


def _run_of(folder: Path) -> dict[str, Any]:
    """Raises: Usage."""
    try:
        run = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        needed = {"plan", "options", "seed", "endpoints", "processes", "run"} - run.keys()
        if needed or "version" not in run["tool"] or not (folder / "samples.jsonl").exists():
            raise ValueError("files or fields of it are missing")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Usage(
            f"{folder} can't be gone on with: {error!r}; it needs samples.jsonl and run.json of a run"
        ) from error
    return dict(run)


def _contradictions(asked: argparse.Namespace, begun: Mapping[str, Any]) -> Iterator[str]:
    plain = {name: shown(value) for name, value in vars(asked).items()}
    now = json.loads(json.dumps(redaction.options(plain)))
    if begun.get("api_key") and not asked.api_key and not any(map(os.environ.get, KEYS.values())):
        yield (
            "the run was begun with --api-key, and keys are never stored: say it again, or set "
            f"{' or '.join(f'${name}' for name in sorted(set(KEYS.values())))}"
        )
    for name, value in now.items():
        option = f"--{name.replace('_', '-')}"
        if name in FREE:
            continue
        if name == "header" and begun.get(name) and not value:
            named = ", ".join(name for name, _ in begun["header"])
            yield f"the run was begun with --header {named}, whose values are never stored: say it again"
        if value != begun.get(name, value):
            yield (
                f"{option} {_spoken(value)} isn't what the run was begun with ({_spoken(begun[name])}), and what is "
                "measured can't change in its middle: leave it out, or begin a new run"
            )
        if name != "header" and redaction.HIDDEN in json.dumps(plain[name]):
            yield f"{option} of the run held a key, and keys are never stored: say {option} again"


def _spoken(value: object) -> str:
    if value is None:
        return "nothing"
    return value if isinstance(value, str) else json.dumps(value)
