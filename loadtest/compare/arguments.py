"""The words of `tokenclock compare`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from loadtest.arguments import Usage, share
from loadtest.extras import require


def add_compare(verbs: Any) -> None:
    from loadtest.compare.published import SELECTIONS

    verb = verbs.add_parser(
        "compare",
        help="runs against runs, or a run against published figures",
        description="Say by how much A differs from B, with an interval that knows that requests of a run aren't "
        "independent; or put a run beside published figures that mean the same.",
    )
    verb.add_argument("a", nargs="+", type=Path, metavar="RUN", help="folders of runs: A, what is judged")
    against = verb.add_mutually_exclusive_group(required=True)
    against.add_argument("--to", nargs="+", type=Path, metavar="RUN", help="folders of runs: B, what A is compared to")
    against.add_argument("--published", choices=tuple(SELECTIONS), help="figures that Hugging Face published")
    against.add_argument(
        "--reference", type=Path, metavar="FILE", help="your own table, with the columns of published.csv"
    )
    runs = verb.add_argument_group("runs against runs")
    runs.add_argument(
        "--fail-on",
        action="append",
        default=[],
        metavar="RULE",
        help="such as 'ttft_p50 > 5%%' or 'throughput_output < -5%%': exit code 1 where the interval says that A is so "
        "much above or below B in any cell; may be repeated",
    )
    runs.add_argument(
        "--trust-within-run",
        action="store_true",
        help="with fewer than five runs a side, take the spread within the runs for all there is",
    )
    runs.add_argument(
        "--margin",
        type=share,
        metavar="SHARE",
        help="how far the interval of `no difference` may reach (default: 5%%)",
    )
    both = verb.add_argument_group("both")
    both.add_argument("--chart", type=Path, metavar="FILE", help="draw it, as .png, .svg or .pdf")
    both.add_argument("--json", action="store_true", help="print one JSON object for machines")


def compare(asked: argparse.Namespace) -> int:
    """Raises: Usage; ModuleNotFoundError where the extra isn't installed."""
    require("numpy", "scipy", *(["matplotlib"] if asked.chart else []))
    from loadtest.compare import chart, verb
    from loadtest.compare.differences import MARGIN, Rules
    from loadtest.compare.gate import Rule, RuleError

    of_runs = {"--fail-on": asked.fail_on, "--trust-within-run": asked.trust_within_run, "--margin": asked.margin}
    stray = [name for name, value in of_runs.items() if value]
    if asked.to is None and stray:
        raise Usage(f"{stray[0]} is for runs against runs: add --to, or leave it out")
    if asked.to is None and len(asked.a) > 1:
        raise Usage(f"published figures stand beside one run, {len(asked.a)} are named: choose one")
    if asked.chart is not None and asked.chart.suffix not in chart.FORMATS:
        raise Usage(f"--chart {asked.chart}: its name must end in {', '.join(chart.FORMATS)}")
    try:
        rules = tuple(dict.fromkeys(map(Rule.parse, asked.fail_on)))
    except RuleError as error:
        raise Usage(f"--fail-on {error}") from error
    return verb.run(
        verb.Options(
            a=tuple(asked.a),
            b=tuple(asked.to or ()),
            published=asked.published,
            reference=asked.reference,
            fail_on=rules,
            rules=Rules(asked.trust_within_run, MARGIN if asked.margin is None else asked.margin),
            chart=asked.chart,
            as_json=asked.json,
        )
    )
