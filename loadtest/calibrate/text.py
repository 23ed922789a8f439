"""What a calibration shows: errors, what they cost, who was late, and how far the load can be raised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from loadtest.report.clock import ERRORS, load_said
from loadtest.report.numbers import ABSENT, quantity
from loadtest.report.text import aligned
from loadtest.trust import REMEDY

HEAD = ["error of", "p50", "p99", "max", "n"]


def render(loads: list[dict[str, Any]], highest: Mapping[str, Any] | None) -> str:
    """The text printed on the terminal. highest: as in --json."""
    blocks = ["\n".join(_load(load)) for load in loads]
    if highest is not None:
        blocks.append(highest_said(highest))
    return "\n\n".join(blocks)


def _load(load: Mapping[str, Any]) -> Iterator[str]:
    shape, client = load["shape"], load["client"]
    if load["cells"]:
        yield ", ".join(load["cells"])
    yield f"{load_said(shape)}; {shape['protocol']} over {shape['transport']}, {load['seconds']:g} s"
    yield aligned(HEAD, [[title, *_row(load["errors"][name])] for title, name in ERRORS])
    cpu = load["cpu_us_per_token"]
    yield (
        f"{load['tokens_per_s']:,.0f} tokens/s, CPU per token {ABSENT if cpu is None else f'{cpu:.0f} µs'}; "
        f"kernel stamps {100 * load['kernel_stamps']:.0f} % of requests, "
        f"shared reads {100 * load['shared_reads']:.1f} % of tokens"
    )
    late = load["server_late_s"]
    yield f"the truth server's own lateness, in no error: p99 {quantity(late['judged'], 's', 3)}"
    if not load["schedule_kept"]:
        yield "that is more than a gap: the load was lighter than asked for; give the truth server a core of its own"
    if load["server_stamps"] < 1:
        yield "the truth server had no kernel stamps: how late it read a request is in these errors"
    if bad := {verdict: n for verdict, n in load["verdicts"].items() if verdict not in ("complete", "cancelled")}:
        yield "not complete: " + ", ".join(f"{n} {verdict}" for verdict, n in bad.items())
    yield client_said(client)


def client_said(client: Mapping[str, Any]) -> str:
    """`client saturated: REASON; REASON: fewer users, …`."""
    if client["verdict"] == "ok":
        return "client ok"
    return f"client {client['verdict']}: {'; '.join(client['reasons'])}; remedy: {REMEDY}"


def _row(error: Mapping[str, Any]) -> list[str]:
    return [*(quantity(error[name], "s", 3) for name in ("p50", "p99", "max")), str(error["n"])]


def highest_said(highest: Mapping[str, Any]) -> str:
    bound, of = quantity(highest["bound_s"], "s", 3), highest["of"]
    over = "" if highest["over"] is None else f"; at {highest['over']:g}: {highest['why']}"
    if highest["under"] is None:
        return f"no load was found whose errors stay under {bound} at p99{over} ({highest['ended']})"
    least = "at least " if highest["over"] is None else ""
    return (
        f"the highest load whose errors stay under {bound} at p99: {least}{highest['under']:g} {of}{over} "
        f"({highest['ended']})"
    )
