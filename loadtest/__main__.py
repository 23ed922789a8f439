"""The command line: `run` measures an endpoint, `probe` looks at a request closely, `calibrate` at the client itself,
`report` recomputes a report, `compare` holds runs against runs or published figures.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from loadtest import plan as plans
from loadtest.arrivals import KINDS, Arrivals, ArrivalsError
from loadtest.extras import needed, remedy, require
from loadtest.redaction import guard_logs, hide, spoken
from loadtest.verdict import Verdict

try:
    from loadtest.arguments import (
        INPUT_TOKENS,
        NEW_TOKENS,
        Usage,
        add_dataset,
        add_endpoint,
        add_goodput,
        add_timeouts,
        add_users,
        add_wire,
        check_goodput,
        check_wire,
        command,
        count,
        dataset,
        seconds,
        shared_prefix,
        shown,
        timeouts,
        wanted,
    )
    from loadtest.calibrate.arguments import add_calibrate, calibrate
    from loadtest.compare.arguments import add_compare, compare
    from loadtest.distributed.arguments import add_spread, spread_of, worker_of
    from loadtest.report.arguments import add_report, named, output_of
    from loadtest.split.arguments import add_metrics, page
except ModuleNotFoundError as error:  # pip brought no extra at all: there aren't even options to read
    print(f"tokenclock: {remedy(error)}", file=sys.stderr)
    sys.exit(2)

if TYPE_CHECKING:
    from loadtest.run import Options
    from loadtest.site import Look


SERVE_TIMEOUT_S = 600.0
LOOK_S = 30.0  # a probe waits so long for what it shows nothing of


def main(arguments: Sequence[str] | None = None) -> None:
    if sys.stderr is None:  # closed by who started us: sentences must not come between the results on stdout
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    guard_logs()
    try:
        sys.exit(dispatch(parser().parse_args(arguments), arguments))
    except KeyboardInterrupt:
        sys.exit(130)


def dispatch(asked: argparse.Namespace, words: Sequence[str] | None) -> int:
    try:
        if asked.verb == "run" and asked.resume is not None:
            from loadtest.resume import asked_again

            asked = asked_again(asked.resume, lambda begun: parser(begun).parse_args(words))
        verbs = {"run": run, "probe": probe, "calibrate": calibrate, "report": report, "compare": compare}
        return verbs[asked.verb](asked)
    except Usage as error:
        return fail(str(error))
    except ModuleNotFoundError as error:
        return fail(remedy(error))


def run(asked: argparse.Namespace) -> int:
    if asked.worker:
        host, port = worker_of(asked)
        require(*needed(None, None))
        from loadtest.distributed import worker

        return worker.run(host, port, asked.parent, asked, options)
    chosen = replace(options(asked), spread=spread_of(asked, echo(asked)))
    require("rich", "matplotlib", "jinja2", "markdown_it")  # said before the measurement, not after it
    from loadtest import run as verb

    return verb.run(chosen, echo(asked), asked.resume)


def probe(asked: argparse.Namespace) -> int:
    if asked.prompt is not None:
        for name, value in (("--input-tokens", asked.input_tokens), ("--tokenizer", asked.tokenizer)):
            if value is not None:
                raise Usage(f"--prompt is asked as it is, and nobody counts it before: leave {name} out")
    from loadtest.probe import run as verb

    limits = timeouts(asked)
    return verb.run(
        verb.Options(
            url=asked.url,
            look=replace(look(asked), timeouts=replace(limits, first_byte_s=min(limits.first_byte_s, LOOK_S))),
            timeouts=limits,
            requests=asked.requests,
            input_tokens=asked.input_tokens or 64,
            new_tokens=asked.new_tokens,
            prompt=asked.prompt,
            seed=time.time_ns() if asked.seed is None else asked.seed,
            verify=not asked.insecure,
            as_json=asked.json,
        )
    )


def report(asked: argparse.Namespace) -> int:
    from loadtest.goodput import GoodputError, short_of
    from loadtest.report.charts import ChartsError
    from loadtest.report.side_by_side import SideBySideError

    folders = named(asked.folders)
    output = output_of(folders, asked.output)
    require("matplotlib", "jinja2", "markdown_it")
    from loadtest.report import show, show_together

    check_goodput(asked, share_needs_words=False)
    said = {name: value for name in ("goodput", "goodput_share") if (value := getattr(asked, name)) is not None}
    try:
        if output is None:
            (folder,) = folders.values()
            summaries = [show(folder, said)]
        else:
            summaries = show_together(folders, output, said)
    except (ChartsError, GoodputError, SideBySideError) as error:
        return fail(str(error))
    except (OSError, ValueError, KeyError, TypeError) as error:
        where = ", ".join(map(str, folders.values()))
        return fail(f"{where} can't be reported: {error!r}; it needs samples.jsonl and run.json of a run")
    if asked.goodput_share is not None and not all(summary["goodput"] for summary in summaries):
        return fail("--goodput-share is of the requests that meet --goodput, and the run has none: add it")
    short = [sentence for summary in summaries for sentence in short_of(summary)]
    for sentence in short:
        print(f"tokenclock: not good enough: {sentence}", file=sys.stderr)
    return 1 if short else 0


class Parser(argparse.ArgumentParser):
    """What it refuses it repeats, but no key: `--apikey X` is an option that isn't there, and X is one all the same."""

    def error(self, message: str) -> NoReturn:
        super().error(spoken(message))


def parser(begun: Mapping[str, Any] | None = None) -> argparse.ArgumentParser:
    """begun: the options of a run that goes on, which are then the defaults."""
    top = Parser(prog="tokenclock", description=__doc__)
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")
    verb = verbs.add_parser(
        "run", help="measure an endpoint", description="Measure an endpoint: a plan in waves, or users for a time."
    )
    where = verb.add_argument_group("what is measured")
    where.add_argument(
        "-H",
        "--url",
        "--host",
        "--base-url",
        dest="url",
        metavar="URL",
        help="its base URL, such as http://127.0.0.1:8080",
    )
    where.add_argument(
        "--serve",
        type=command,
        metavar="CMD",
        help="start this server for each configuration, and stop it after; {slots} and {port} are filled in",
    )
    where.add_argument(
        "--serve-timeout",
        type=seconds,
        metavar="TIME",
        help="how long it may take to be ready (default: 10m)",
    )
    grid = verb.add_argument_group("a plan, in waves")
    grid.add_argument("--plan", metavar="NAME", help=" or ".join(plans.PLANS))
    grid.add_argument("--config", choices=tuple(plans.CONFIGS), help="only this configuration (default: both)")
    grid.add_argument("-n", "--waves", type=count, metavar="N", help="waves of each cell (default: 10)")
    grid.add_argument("--warmup-waves", type=count, metavar="N", help="waves before them that don't count (default: 1)")
    free = verb.add_argument_group("or a free run, in a closed loop or an open one")
    add_users(free)
    free.add_argument("-t", "--run-time", type=seconds, metavar="TIME", help="such as 30s, 5m, 1h30m")
    free.add_argument(
        "--input-tokens", type=count, metavar="N", help="tokens of every prompt, as the server counts (default: 256)"
    )
    free.add_argument(
        "--shared-prefix-tokens", type=count, metavar="N", help="so many of them are the same for all (default: none)"
    )
    free.add_argument("--new-tokens", type=count, metavar="N", help="tokens of every answer (default: 256)")
    add_dataset(free)
    free.add_argument(
        "--rate",
        "--request-rate",
        dest="rate",
        type=float,
        metavar="R",
        help="requests a second, whatever the endpoint does: an open loop",
    )
    free.add_argument("--arrivals", choices=KINDS, help="how an open loop's requests are spread (default: poisson)")
    free.add_argument("--burstiness", type=float, metavar="B", help="of gamma arrivals: below 1 they come in bursts")
    both = verb.add_argument_group("both")
    both.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="where the run's folder goes (default: results)",
    )
    both.add_argument("--seed", type=int, help="of the prompts; the same one repeats them (default: drawn, recorded)")
    add_timeouts(both)
    add_endpoint(verb.add_argument_group("the endpoint"))
    add_wire(verb.add_argument_group("how requests travel"))
    both.add_argument(
        "--allow",
        action="append",
        default=[],
        choices=[*(v.value for v in Verdict if v is not Verdict.COMPLETE), "saturated"],
        help="a verdict that doesn't fail the run, or saturated, the client's; may be repeated",
    )
    add_goodput(both)
    add_metrics(both)
    both.add_argument(
        "--no-calibrate", action="store_true", help="don't measure the client's own error afterwards (some seconds)"
    )
    both.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="go on with a plan that was interrupted, in its folder and with its options: the waves it lacks",
    )
    add_spread(verb.add_argument_group("in several processes"))
    verb.set_defaults(**begun or {})
    _add_probe(verbs)
    add_calibrate(verbs)
    add_goodput(add_report(verbs))
    add_compare(verbs)
    return top


def _add_probe(verbs: Any) -> None:
    verb = verbs.add_parser(
        "probe",
        help="one request as a waterfall, and what looks wrong",
        description="Ask an endpoint once, or a few times, and show what the answer consisted of and what looks wrong.",
    )
    verb.add_argument("url", metavar="URL", help="http://, https:// or sagemaker://")
    what = verb.add_argument_group("what is asked")
    what.add_argument(
        "-n", "--requests", type=count, default=1, metavar="N", help="one after the other on a connection (default: 1)"
    )
    what.add_argument(
        "--input-tokens", type=count, metavar="N", help="tokens of every prompt, as the server counts (default: 64)"
    )
    what.add_argument(
        "--new-tokens", type=count, default=32, metavar="N", help="tokens of every answer (default: %(default)s)"
    )
    what.add_argument("--prompt", metavar="TEXT", help="ask this, instead of a row of words that is made and counted")
    what.add_argument("--seed", type=int, help="of the prompts; the same one repeats them (default: drawn)")
    what.add_argument("--json", action="store_true", help="print one JSON object for machines")
    add_timeouts(what)
    add_endpoint(verb.add_argument_group("the endpoint"))
    add_wire(verb.add_argument_group("how requests travel"))


def look(asked: argparse.Namespace) -> Look:
    """Raises: Usage where the options of the wire contradict each other, or a file can't be read; ModuleNotFoundError
    where they need what isn't installed.
    """
    from loadtest.site import Look
    from loadtest.transport.choice import connecting, controlling, trusting
    from loadtest.transport.tls import TlsError

    require(*needed(asked.url, asked.tokenizer))
    try:
        tls = trusting(asked.transport, asked.cacert, asked.insecure, asked.http2)
    except TlsError as error:
        raise Usage(str(error)) from error
    check_wire(asked, asked.url)
    return Look(connecting(asked.transport, tls), controlling(asked.transport, tls), wanted(asked), asked.tokenizer)


def options(asked: argparse.Namespace) -> Options:
    """Raises: Usage where the options contradict each other or lack one."""
    plan_only = {"--config": asked.config, "-n/--waves": asked.waves, "--warmup-waves": asked.warmup_waves}
    free = {
        "-u/--users": asked.users,
        "-t/--run-time": asked.run_time,
        "--input-tokens": asked.input_tokens,
        "--shared-prefix-tokens": asked.shared_prefix_tokens,
        "--dataset": asked.dataset,
        "--dataset-order": asked.dataset_order,
        "--new-tokens": asked.new_tokens,
        "--rate": asked.rate,
        "--arrivals": asked.arrivals,
        "--burstiness": asked.burstiness,
    }
    given = [name for name, value in free.items() if value is not None]
    if (asked.url is None) == (asked.serve is None):
        raise Usage("say where: either --url URL or --serve CMD")
    if asked.plan is not None and given:
        raise Usage(f"--plan fixes users and tokens, {given[0]} is for a free run: leave one of them out")
    if asked.plan is not None and asked.no_stream:
        raise Usage("--no-stream leaves a plan without first tokens, which its encoding time is made of: leave one out")
    if asked.plan is None and (asked.users is None or asked.run_time is None):
        raise Usage(f"say what: --plan {'|'.join(plans.PLANS)}, or a free run with -u USERS -t TIME")
    stray = [name for name, value in plan_only.items() if value is not None]
    if asked.plan is None and stray:
        raise Usage(f"{stray[0]} belongs to a plan: add --plan, or leave it out")
    for name in ("--arrivals", "--burstiness"):
        if asked.rate is None and free[name] is not None:
            raise Usage(f"{name} belongs to an open loop: add --rate, or leave it out")
    if asked.arrivals == "gamma" and asked.burstiness is None:
        raise Usage("gamma arrivals need --burstiness: 1 is poisson, less comes in bursts, more is more even")
    if asked.serve is None and asked.serve_timeout is not None:
        raise Usage("--serve-timeout belongs to --serve: leave it out")
    check_goodput(asked)
    lines = dataset(asked, asked.input_tokens)
    seed = time.time_ns() if asked.seed is None else asked.seed
    input_tokens = asked.input_tokens or INPUT_TOKENS
    try:
        plan = plans.named(asked.plan) if asked.plan is not None else None
        arrivals = None
        if asked.rate is not None:
            burstiness = 1.0 if asked.burstiness is None else asked.burstiness
            arrivals = Arrivals(asked.arrivals or "poisson", asked.rate, burstiness, seed)
    except (plans.PlanError, ArrivalsError) as error:
        raise Usage(str(error)) from error
    from loadtest.run import Options

    return Options(
        url=asked.url,
        serve=asked.serve,
        serve_timeout_s=asked.serve_timeout or SERVE_TIMEOUT_S,
        results=asked.results,
        seed=seed,
        look=replace(look(asked), shared=shared_prefix(asked, input_tokens, seed), metrics=page(asked)),
        timeouts=timeouts(asked),
        allow=frozenset(asked.allow),
        calibrate=not asked.no_calibrate,
        plan=plan,
        configs=(plans.CONFIGS[asked.config],) if asked.config else tuple(plans.CONFIGS.values()),
        waves=asked.waves or 10,
        warmup_waves=asked.warmup_waves or 1,
        users=asked.users or 1,
        run_time_s=asked.run_time or 0.0,
        arrivals=arrivals,
        input_tokens=input_tokens,
        new_tokens=asked.new_tokens or NEW_TOKENS,
        dataset=lines,
        dataset_order=asked.dataset_order or "shuffle",
    )


def echo(asked: argparse.Namespace) -> dict[str, Any]:
    return {name: shown(value) for name, value in sorted(vars(asked).items()) if name not in ("verb", "parent")}


def fail(sentence: str) -> int:
    print(hide(f"tokenclock: {sentence}"), file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
