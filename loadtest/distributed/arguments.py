"""The words of `tokenclock run` about several processes and machines."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from loadtest import redaction
from loadtest.arguments import Usage, count
from loadtest.distributed.spread import ANY_PORT, PORT, Spread, sendable

#: What a worker is told, and can't be told otherwise.
MASTERS = """url serve plan users run_time rate arrivals burstiness dataset dataset_order input_tokens new_tokens
    shared_prefix_tokens seed endpoint_type model tokenizer metrics_url""".split()
MOST_WORKERS = 4096  # request ids have room for so many


def add_spread(group: Any) -> None:
    group.add_argument("--processes", type=count, metavar="N", help="measure a free run in N processes of this machine")
    group.add_argument("--master", action="store_true", help="or with workers on several machines: wait for them")
    group.add_argument("--expect-workers", type=count, metavar="N", help="begin when N are there (default: 1)")
    group.add_argument(
        "--master-bind-host", metavar="HOST", help="where the master listens for them (default: *, everywhere)"
    )
    group.add_argument("--worker", action="store_true", help="be one: the master says what is measured")
    group.add_argument("--master-host", metavar="HOST", help="where a worker finds it (default: 127.0.0.1)")
    group.add_argument("--master-port", type=port, metavar="P", help=f"of either (default: {PORT})")
    group.add_argument("--parent", type=int, help=argparse.SUPPRESS)  # of a worker of --processes


def worker_of(asked: argparse.Namespace) -> tuple[str, int]:
    """Host and port of a worker's master. Raises: Usage where it is given what its master says."""
    for name in MASTERS:
        if getattr(asked, name) is not None:
            raise Usage(f"the master says what a worker measures: leave --{name.replace('_', '-')} out")
    _alone(asked, "--worker", ("processes", "master", "expect_workers", "master_bind_host"))
    return asked.master_host or "127.0.0.1", asked.master_port or PORT


def spread_of(asked: argparse.Namespace, shown: Mapping[str, Any]) -> Spread | None:
    """shown: the options as run.json may hold them. None where this process measures alone.

    Raises: Usage where the words contradict each other.
    """
    if not asked.master:
        for name in ("expect_workers", "master_bind_host"):
            if getattr(asked, name) is not None:
                raise Usage(f"--{name.replace('_', '-')} belongs to --master: add it, or leave it out")
    if not asked.master and asked.processes is None:
        _alone(asked, "a run in one process", ("master_host", "master_port"))
        return None
    if asked.master:
        _alone(asked, "--master", ("processes", "master_host"))
    else:
        _alone(asked, "--processes", ("master_host", "master_port"))
    workers = asked.processes or asked.expect_workers or 1
    if asked.plan is not None:
        raise Usage("a plan's waves are released together, which takes one process: leave --plan out, or the processes")
    if asked.users is not None and workers > asked.users:
        raise Usage(f"{workers} processes can't share {asked.users} users: raise -u, or take at most {asked.users}")
    if workers > MOST_WORKERS:
        raise Usage(f"{workers} processes are more than request ids have room for: take at most {MOST_WORKERS:,}")
    if asked.master and asked.serve is not None:
        raise Usage("--serve starts a server that other machines don't reach: start it yourself, and say --url")
    told, held_back = sendable(vars(asked), redaction.options(shown))
    for name, value in told.items():
        if name != "url" and redaction.HIDDEN in json.dumps(value):
            raise Usage(
                f"--{name.replace('_', '-')} has in it what is a key, and keys are never sent: name it otherwise"
            )
    own: list[str] = []
    if asked.api_key and not asked.master:
        own.append(f"--api-key={asked.api_key}")
    for name, value in asked.header if not asked.master else ():
        own.append(f"--header={name}: {value}")
    if "extra_body" in held_back and not asked.master:
        own += ["--extra-body", json.dumps(asked.extra_body)]
    host = (asked.master_bind_host or "*") if asked.master else "127.0.0.1"
    at = (asked.master_port or PORT) if asked.master else ANY_PORT
    return Spread(workers, not asked.master, host, at, told, held_back, own)


def _alone(asked: argparse.Namespace, what: str, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(asked, name):
            raise Usage(f"--{name.replace('_', '-')} means nothing to {what}: leave it out")


def port(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: use 1 to 65535")
    return number
