"""The words of `tokenclock calibrate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.arguments import Usage, add_users, count, seconds
from loadtest.arrivals import Arrivals, ArrivalsError
from loadtest.endpoints.choice import TYPES
from loadtest.extras import require
from loadtest.transport import TRANSPORTS

if TYPE_CHECKING:
    from loadtest.calibrate.verb import Options

USERS, NEW_TOKENS, INPUT_TOKENS, FIRST_S, GAP_S = 16, 128, 256, 0.2, 0.02  # where nothing is said
#: The truth server is no SageMaker.
ENDPOINT_TYPES = tuple(name for name in TYPES if name != "sagemaker")
PLAIN_TRANSPORTS = tuple(name for name in TRANSPORTS if name != "boto3")
RUN_TIME_S, SEARCH_S, BOUND_S = 10.0, 120.0, 0.001
LEAST_MS, MOST_MS = 0.01, 3_600_000.0


def add_calibrate(verbs: Any) -> None:
    verb = verbs.add_parser(
        "calibrate",
        help="how wrong this client's own clock is, at a load",
        description="Replay a load against a server of known schedule, in a process of its own on this machine, and "
        "show how wrong the client's figures are.",
    )
    verb.add_argument("--like", type=Path, metavar="DIR", help="the load of each cell of this run's folder")
    load = verb.add_argument_group("or a load")
    add_users(load, f" (default: {USERS}; with --rate, enough)")
    load.add_argument(
        "--rate", "--request-rate", dest="rate", type=float, metavar="R", help="requests a second: an open loop"
    )
    load.add_argument(
        "--ttft", type=milliseconds, metavar="MS", help=f"until the first token, ± 20 %% (default: {FIRST_S * 1e3:g})"
    )
    load.add_argument(
        "--gap", type=milliseconds, metavar="MS", help=f"between tokens, ± 10 %% (default: {GAP_S * 1e3:g})"
    )
    load.add_argument("--new-tokens", type=count, metavar="N", help=f"of every answer (default: {NEW_TOKENS})")
    load.add_argument("--input-tokens", type=count, metavar="N", help=f"of every prompt (default: {INPUT_TOKENS})")
    load.add_argument("--endpoint-type", choices=ENDPOINT_TYPES, help="what is spoken (default: tgi)")
    load.add_argument("--transport", choices=PLAIN_TRANSPORTS, help="what carries the requests (default: gevent)")
    both = verb.add_argument_group("both")
    both.add_argument(
        "--event-bytes",
        type=count,
        metavar="B",
        help="least size of a token's event (default: the run's, else the protocol's own)",
    )
    both.add_argument(
        "-t",
        "--run-time",
        type=seconds,
        default=RUN_TIME_S,
        metavar="TIME",
        help=f"of each load, and of each that is tried; streams are shortened to fit (default: {RUN_TIME_S:g}s)",
    )
    both.add_argument(
        "--bound",
        type=milliseconds,
        default=BOUND_S,
        metavar="MS",
        help=f"find the highest load whose errors stay under it at p99 (default: {BOUND_S * 1e3:g})",
    )
    both.add_argument(
        "--search-time",
        type=seconds,
        metavar="TIME",
        help=f"how long to look for that (default: {SEARCH_S / 60:g}m)",
    )
    both.add_argument("--no-search", action="store_true", help="don't look for it")
    both.add_argument("--allow", choices=["saturated"], help="a saturated client doesn't fail the calibration")
    both.add_argument("--json", action="store_true", help="print one JSON object for machines")


def calibrate(asked: argparse.Namespace) -> int:
    """Raises: Usage; ModuleNotFoundError where what shows progress, or a transport's library, isn't installed."""
    require("rich", *({"huggingface_hub"} & {asked.transport}))
    chosen = options(asked)
    from loadtest.calibrate import verb

    return verb.run(chosen)


def options(asked: argparse.Namespace) -> Options:
    """Raises: Usage where the options contradict each other."""
    from loadtest.calibrate.shape import LEAST_INPUT_TOKENS, Shape, users_for
    from loadtest.calibrate.verb import Options

    of_load = {
        "-u/--users": asked.users,
        "--rate": asked.rate,
        "--ttft": asked.ttft,
        "--gap": asked.gap,
        "--new-tokens": asked.new_tokens,
        "--input-tokens": asked.input_tokens,
        "--endpoint-type": asked.endpoint_type,
        "--transport": asked.transport,
    }
    given = [name for name, value in of_load.items() if value is not None]
    shape = None
    if asked.no_search and asked.search_time is not None:
        raise Usage("--no-search and --search-time contradict each other: leave one of them out")
    if asked.like is not None and given:
        raise Usage(f"--like takes the load from a run's files, {given[0]} says another: leave one of them out")
    if asked.like is None:
        try:
            arrivals = None if asked.rate is None else Arrivals("poisson", asked.rate)
        except ArrivalsError as error:
            raise Usage(str(error)) from error
        if asked.input_tokens is not None and asked.input_tokens < LEAST_INPUT_TOKENS:
            raise Usage(
                f"--input-tokens {asked.input_tokens}: prompts below {LEAST_INPUT_TOKENS} tokens are soon used up"
            )
        tokens, first_s, gap_s = asked.new_tokens or NEW_TOKENS, asked.ttft or FIRST_S, asked.gap or GAP_S
        shape = Shape(
            concurrency=asked.users or USERS,
            input_tokens=asked.input_tokens or INPUT_TOKENS,
            tokens=tokens,
            first_s=first_s,
            gap_s=gap_s,
            event_bytes=asked.event_bytes or 0,
            arrivals=arrivals,
            protocol=asked.endpoint_type or "tgi",
            transport=asked.transport or "gevent",
        )
        if arrivals is not None and asked.users is None:
            shape = shape.with_users(users_for(arrivals.rate_per_s, shape.stream_s))
    return Options(
        shape=shape,
        like=asked.like,
        event_bytes=asked.event_bytes or 0,
        seconds=asked.run_time,
        bound_s=asked.bound,
        search_s=None if asked.no_search else asked.search_time or SEARCH_S,
        allow_saturated=asked.allow == "saturated",
        as_json=asked.json,
    )


def milliseconds(text: str) -> float:
    """`20` or `20ms`, in seconds."""
    try:
        value = float(text.removesuffix("ms"))
    except ValueError:
        value = 0.0
    if not LEAST_MS <= value <= MOST_MS:
        raise argparse.ArgumentTypeError(f"{text!r} is no time in milliseconds from {LEAST_MS:g} to {MOST_MS:,.0f}")
    return value / 1e3
