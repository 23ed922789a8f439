"""What the command line says of several processes, and what of its options a worker is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ANY_PORT = 0
PORT = 5557  # locust's
PATHS = ("cacert", "dataset", "tokenizer")  # options that name files of a worker's own
SECRET = ("api_key", "header", "extra_body")  # never sent where they hold a key
#: What a worker has no say in: the master's business, or each machine's own.
KEPT = frozenset(
    """verb processes master worker master_host master_port master_bind_host expect_workers parent results serve
    serve_timeout allow no_calibrate resume goodput goodput_share""".split()
)


@dataclass(frozen=True, slots=True)
class Spread:
    """A run over several processes."""

    workers: int  # that it waits for
    children: bool  # they are started here; else they come from wherever they were started
    host: str  # to listen on
    port: int
    options: Mapping[str, Any]  # for the workers, keys left out
    held_back: Sequence[str]  # names of options with keys: a worker must have its own
    own: Sequence[str]  # those options, as children are given them


def sendable(options: Mapping[str, Any], shown: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """(options that a worker may be told, names of those that hold a key). Locust's messages are plain text.

    shown: the same options as run.json may hold them. Where that changes a value, there is a key in it.
    """
    told = {name: value for name, value in shown.items() if name not in KEPT and name not in SECRET}
    held_back = []
    for name in SECRET:
        if not options.get(name):
            continue
        if name == "extra_body" and shown[name] == options[name]:
            told[name] = options[name]
        else:
            held_back.append(name)
    return told, held_back
