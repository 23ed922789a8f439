"""A comparison as a terminal shows it: every difference with its interval, how it was decided, and the gate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from loadtest.compare.differences import NOISY, Absent, Difference, Rules
from loadtest.compare.gate import Held, Rule
from loadtest.compare.intervals import ALPHA, LEAST
from loadtest.compare.published import Beside, LeftOut
from loadtest.compare.sides import Run, Unpaired
from loadtest.report.numbers import ABSENT, places, plain, quantity, scale
from loadtest.report.text import aligned

HEAD = ("cell", "measure", "B", "A", "A is", "95 % CI", "verdict")


def percent(share: float | None) -> str:
    """`+2.1 %`; `∞` of what failed on one side only."""
    return ABSENT if share is None else "∞" if math.isinf(share) else f"{100 * share:+.1f} %"


def between(interval: tuple[float, float] | None) -> str:
    return ABSENT if interval is None else f"{percent(interval[0])} to {percent(interval[1])}"


def figure(value: float | None, unit: str) -> str:
    return "∞" if value is not None and math.isinf(value) else quantity(value, unit)


def table(found: Sequence[Difference]) -> str:
    rows = [
        [
            each.cell,
            each.measure.name,
            figure(each.b, each.measure.unit),
            figure(each.a, each.measure.unit),
            percent(each.share),
            between(each.interval),
            each.verdict,
        ]
        for each in found
    ]
    return aligned(HEAD, rows)


def comparison(
    a: Sequence[Run],
    b: Sequence[Run],
    found: Sequence[Difference],
    absent: Sequence[Absent],
    left_out: Sequence[Unpaired],
    held: Sequence[Held],
    rules: Rules,
    said: tuple[Sequence[str], Sequence[str]],
    not_held: Sequence[tuple[Rule, Absent]] = (),
) -> str:
    """Everything, without a newline at its end. said: what differs, and what speaks against the figures. not_held: as
    `gate.not_held` has it.
    """
    blocks = [f"A: {_names(a)}\nB: {_names(b)}"]
    if found:
        blocks.append(table(found))
    reasons: dict[str, list[str]] = {}
    for each in found:
        if each.why:
            reasons.setdefault(each.why, []).append(f"{each.cell} {each.measure.name}")
    lines = [f"too noisy to say: {why} ({_some(where, len(found))})" for why, where in reasons.items()]
    lines += [f"not compared: {each.label}: {each.why}" for each in left_out]
    lines += [f"not compared: {', '.join(what)}: {why}" for why, what in _together(absent).items()]
    lines += [f"differs: {each}" for each in said[0]] + [f"doubt: {each}" for each in said[1]]
    blocks += ["\n".join(lines)] if lines else []
    blocks.append("\n".join(_method(found, rules)))
    if held:
        skipped = [f"not held: {rule.text}, {each.cell}: {each.why}" for rule, each in not_held]
        blocks.append("\n".join([*gate(held), *skipped]))
    return "\n\n".join(blocks)


def _together(absent: Sequence[Absent]) -> dict[str, list[str]]:
    """By reason, `T 256→16 itl_p99`."""
    found: dict[str, list[str]] = {}
    for each in absent:
        found.setdefault(each.why, []).append(f"{each.cell} {each.measure.name}")
    return found


def _names(runs: Sequence[Run]) -> str:
    return f"{len(runs)} run{'' if len(runs) == 1 else 's'}: {', '.join(run.name for run in runs)}"


def _some(where: Sequence[str], all_of_them: int) -> str:
    if len(where) == all_of_them:
        return "all of them"
    return ", ".join(where[:3]) + (f" and {len(where) - 3} more" if len(where) > 3 else "")


def _method(found: Sequence[Difference], rules: Rules) -> Iterator[str]:
    tested = [each for each in found if each.ratio is not None]
    if not tested:
        if any(each.verdict == NOISY for each in found):
            yield (
                f"To know more: {LEAST} runs of each side or more, A and B in turn; or --trust-within-run, which takes "
                "every run's own spread for all there is."
            )
        return
    yield "A is what it is relative to B: the ratio of the geometric means of its runs' figures, less one."
    if any(each.of == "runs" for each in tested):
        yield "A run is one observation (Welch's interval), so whatever its requests have in common is in the interval."
    if any(each.of == "blocks" for each in tested):
        yield (
            "Blocks of requests are the observations (--trust-within-run): the intervals hold for these runs, and "
            "leave out by how much another run of the same thing would differ."
        )
    yield (
        f"no difference: the interval reaches no further than ± {100 * rules.margin:g} %. Of {len(tested)} intervals "
        f"{2 * ALPHA * len(tested):.1f} are off by accident, where nothing changed too; --fail-on corrects for that."
    )


def gate(held: Sequence[Held]) -> Iterator[str]:
    """A line for each rule and cell. What fired comes first."""
    count = sum(each.p_value is not None for each in held)
    for each in sorted(held, key=lambda one: not one.fired):
        found, p = each.found, each.p_value
        what = f"{each.rule.text}, {found.cell}: {percent(found.share)}"
        if p is None:
            yield f"passes: {what}, too noisy to say ({found.why})"
            continue
        if each.fired:
            why = f"p = {_small(p)}, at most {_small(each.allowed)} is asked of it"
            yield f"FAILS: {what} (95 % CI {between(found.interval)}); {why}"
        else:
            yield f"passes: {what} (95 % CI {between(found.interval)}); p = {_small(p)} is no proof of it"
    if count:
        yield (
            f"A rule fires where its end of the interval says so, with a chance of {100 * ALPHA:g} % in all to do so "
            f"by accident (Holm's correction for {count} comparison{'' if count == 1 else 's'})."
        )


def _small(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-6 else "10⁻⁶ or less"


def beside(run: str, title: str, found: Sequence[Beside], left_out: Sequence[LeftOut], caveats: Sequence[str]) -> str:
    """Measured beside published: the table, what is left out and why, and what to know before quoting it."""
    rows = [
        [
            each.cell,
            each.metric,
            f"{_with_interval(each)} ({'median' if each.statistic == 'p50' else each.statistic} of {each.n})",
            _printed(each),
            f"× {plain(each.ratio)} ({plain(each.ratio_between[0])}–{plain(each.ratio_between[1])})",
            f"{each.row.model}, {each.row.hardware}: {each.row.source}",
        ]
        for each in found
    ]
    blocks = [f"{run}\nbeside {title}"]
    if rows:
        sources = {row[-1] for row in rows}
        head = ["cell", "metric", "measured (95 % CI)", "reference", "ratio", "source"]
        if len(sources) == 1:
            blocks[0] += f"\n({rows[0][-1]})"
            head, rows = head[:-1], [row[:-1] for row in rows]
        blocks.append(aligned(head, rows))
        blocks.append(
            "ratio: measured over reference; in brackets what the interval and the reference's rounding leave open."
        )
    else:
        blocks.append("Nothing of it can be compared.")
    reasons: dict[str, list[str]] = {}
    for each in left_out:
        reasons.setdefault(each.why, []).append(each.what)
    if reasons:
        lines = [f"  {why}:\n    " + "\n    ".join(what) for why, what in reasons.items()]
        blocks.append("Left out\n" + "\n".join(lines))
    if caveats:
        blocks.append("To know before quoting it\n" + "\n".join(f"- {each}" for each in caveats))
    return "\n\n".join(blocks)


def _with_interval(each: Beside) -> str:
    text = quantity(each.value, each.row.unit)
    if each.interval is None:
        return text
    factor = scale(each.row.unit, abs(each.value))[0]
    decimals = places(each.value * factor, 4)
    return f"{text} ({each.interval[0] * factor:.{decimals}f}–{each.interval[1] * factor:.{decimals}f})"


def _printed(each: Beside) -> str:
    """As it is printed there: no digit more."""
    unit = each.row.unit
    decimals = max(0, round(-math.log10(2 * each.row.rounding)))
    return f"{each.row.value:.{decimals}f} {unit}"
