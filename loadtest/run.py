"""The verb `run`: a plan in waves, or users for a time, from the first check of the endpoint to the report.

Exit codes: 0 every request complete, the client fast enough, and as many requests good as --goodput-share demands; 1
measured, but not so; 2 nothing could be measured;
130 interrupted, with a report of what was measured until then.
"""

from __future__ import annotations

from loadtest.loads import Options, measure_plan, say  # isort: skip  (first: it patches)

from pathlib import Path
from typing import Any

from loadtest.arguments import Usage
from loadtest.free import measure_free, measure_open
from loadtest.goodput import short_of
from loadtest.interruption import Interrupted, interruptible
from loadtest.kept import NOTHING, Kept
from loadtest.live.exporter import exported
from loadtest.live.processes import Alone
from loadtest.plan import Plan
from loadtest.record import Recorder
from loadtest.report import show
from loadtest.resume import reopened
from loadtest.trust import REMEDY, SATURATED

__all__ = ["Options", "run"]


def name_of(options: Options) -> str:
    """What was run, in the name of its folder."""
    if options.plan:
        return options.plan.name
    return f"{options.arrivals.rate_per_s:g}-per-s" if options.arrivals else f"{options.users}-users"


def run(options: Options, echo: dict[str, Any], resume: Path | None = None) -> int:
    """Measure, report, and say how it went. `echo` is every option by name, for run.json. resume: the folder of a run
    to go on with, which was begun with these options.

    Raises: Usage where there is no place for what would be measured.
    """
    plan = options.plan
    recorder, kept = (begun(options, echo), NOTHING) if resume is None else reopened(resume)
    wanting = plan is None or lacks_waves(options, plan, kept)

    def work() -> None:
        if options.spread:
            from loadtest.distributed.master import measure_spread

            measure_spread(options, options.spread, recorder)
            return
        with exported(Alone(options.live), options.results, say):
            if plan:
                measure_plan(options, plan, recorder, kept)
            elif options.arrivals:
                measure_open(options, options.arrivals, recorder)
            else:
                measure_free(options, recorder)

    if resume is not None:
        _go_on(recorder, wanting)
    problem = interruptible(work) if wanting else None
    measured = recorder.complete + recorder.other
    try:
        recorder.close(interrupted=problem is not None)
    except OSError as error:
        say(f"{recorder.folder} can't be finished: {error.strerror}; `tokenclock report` works once there is room")
        return 1
    if problem is not None:
        say("interrupted: the report is of what was measured" if isinstance(problem, Interrupted) else str(problem))
    if wanting and not measured:
        recorder.discard()
        return 130 if isinstance(problem, Interrupted) else 2
    if plan and problem is not None:
        say(f"`tokenclock run --resume {recorder.folder}` goes on with it")
    if measured or not recorder.calibrated:
        _calibrate(recorder, options, problem)
    return _report(recorder, options, problem)


def begun(options: Options, echo: dict[str, Any]) -> Recorder:
    """A new folder. Raises: Usage where there can be none."""
    plan = options.plan
    try:
        return Recorder(
            options.results,
            name_of(options),
            plan=plan.name if plan else None,
            configs=[config.name for config in options.configs] if plan else [],
            waves=options.waves if plan else None,
            seed=options.seed,
            options=echo,
        )
    except OSError as error:
        raise Usage(f"{options.results} can't hold results: {error.strerror}; choose another --results") from error


def lacks_waves(options: Options, plan: Plan, kept: Kept) -> bool:
    return any(kept.lacking(plan.cells(config, None), options.waves) for config in options.configs)


def _go_on(recorder: Recorder, wanting: bool) -> None:
    """Write in the folder from here on, where there is something to write."""
    if not wanting:
        say(f"{recorder.folder} has every wave: nothing is left to be measured")
    elif cut_bytes := recorder.go_on():
        say(f"half a last line of samples.jsonl, {cut_bytes} bytes, was cut off: its wave is measured anew")


def _calibrate(recorder: Recorder, options: Options, problem: BaseException | None) -> None:
    """The client's own error at this run's loads, or why it isn't known: into run.json."""
    later = f"`tokenclock calibrate --like {recorder.folder}` does it"
    if options.spread and options.calibrate and problem is None:
        return  # its workers did, each on its machine
    if not options.calibrate:
        found: dict[str, Any] = {"loads": [], "reason": f"--no-calibrate was said; {later}"}
    elif problem is not None:
        found = {"loads": [], "reason": f"the run was ended early; {later}"}
    else:
        from loadtest.calibrate.after import calibration

        found = calibration(recorder.folder)
    try:
        recorder.calibration(found)
    except OSError as error:
        say(f"{recorder.folder} can't hold the calibration: {error.strerror}")


def _report(recorder: Recorder, options: Options, problem: BaseException | None) -> int:
    summary = show(recorder.folder)
    if isinstance(problem, Interrupted):
        return 130
    allowed = {"complete", *options.allow, *(["cancelled"] if recorder.process else [])}  # what was cut was resumed
    bad = {name: count for name, count in summary["verdicts"]["counts"].items() if name not in allowed}
    if bad:
        say("not complete: " + ", ".join(f"{count} {name}" for name, count in bad.items()))
    short = short_of(summary)
    for sentence in short:
        say(f"not good enough: {sentence}")
    saturated = summary["client"]["saturated"]
    if saturated:
        say("the client was the bottleneck: " + "; ".join(summary["client"]["reasons"]) + f"; remedy: {REMEDY}")
    missed = bad or short or summary["lost"]
    return 1 if problem is not None or missed or (saturated and SATURATED not in options.allow) else 0
