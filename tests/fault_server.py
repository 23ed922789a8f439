"""The server with a backend that fails now and then, in a process of its own, which also tells what it holds.

    python -m tests.fault_server --fail-every 150 --port 0 …    # the options of `tokenclock-server serve`
    python -m tests.fault_server --scripted --port 0 …          # no model: prompts are answered with themselves

`GET /held` gives the tasks of the event loop, the threads, and the memory blocks and objects that the interpreter has
given out, after a garbage collection.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from server.app import create_app
from server.backends.base import Backend, Sampling, Step
from server.backends.passes import DecodePass, PromptPass
from server.lifecycle import run
from server.loading import load
from server.logs import configure
from server.settings import Settings, parse
from server.tokenizer import Tokenizer
from tests.server.scripted import ScriptedBackend

T = TypeVar("T")


class Stumbling:
    """One of so many calls raises: before it has begun, in the middle of its forward pass, or when all is done.

    In the middle means that the cache holds NaN where the call wrote.
    """

    def __init__(self, backend: Any, every: int, seed: int) -> None:
        self._backend = backend
        self._every = every
        self._random = random.Random(seed)
        self.limits, self.about = backend.limits, backend.about

    def prefill(self, slot: int, token_ids: Sequence[int], sampling: Sampling) -> Step | None:
        return self._perhaps({slot: len(token_ids)}, lambda: self._backend.prefill(slot, token_ids, sampling))  # type: ignore[no-any-return]

    def decode(self) -> Mapping[int, Step]:
        lengths = {slot: self._backend._lengths[slot] for slot in self._backend._samplers}
        return self._perhaps(lengths, self._backend.decode)  # type: ignore[no-any-return]

    def release(self, slot: int) -> None:
        self._backend.release(slot)

    def _perhaps(self, lengths: Mapping[int, int], call: Callable[[], T]) -> T:
        if self._random.randrange(self._every):
            return call()
        when = self._random.choice(["before", "within", "after"])
        if when == "within":
            self._spoil(lengths, call)
        elif when == "after":
            call()
        raise RuntimeError(f"the device stumbled: {when}")

    def _spoil(self, lengths: Mapping[int, int], call: Callable[[], Any]) -> None:
        """`lengths`: the positions that the call writes to at most, by slot."""

        def stop(*_: Any) -> None:
            raise RuntimeError("the device stumbled: within")

        backend = self._backend
        hook = backend._model.model.layers[1].register_forward_pre_hook(stop)
        recorded = backend._prompt, backend._step
        backend._prompt, backend._step = PromptPass(backend._model), DecodePass(backend._model)  # recordings: no hooks
        try:
            call()
        finally:
            hook.remove()
            backend._prompt, backend._step = recorded
            with torch.inference_mode():  # as the backend's own writes
                for rows in (*backend._rows.keys, *backend._rows.values):
                    for slot, length in lengths.items():
                        rows[slot, :, :length] = float("nan")


async def held() -> dict[str, Any]:
    gc.collect()
    return {
        "tasks": sorted(getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks()),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "objects": len(gc.get_objects()),
        "blocks": sys.getallocatedblocks(),
    }


def main() -> None:
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--fail-every", type=int)
    own.add_argument("--seed", type=int, default=7)
    own.add_argument("--scripted", action="store_true")
    asked, options = own.parse_known_args()

    def loader(settings: Settings) -> tuple[Backend, Tokenizer]:
        if asked.scripted:
            assert settings.model is not None
            backend = ScriptedBackend(settings.slots or 4, keep_log=False, vocabulary=1024, longest=256)
            return backend, Tokenizer.load(settings.model)
        real, tokenizer = load(settings)
        return (real if asked.fail_every is None else Stumbling(real, asked.fail_every, asked.seed)), tokenizer

    settings = parse(options)
    configure(settings.log_format, settings.log_level)
    app = create_app(settings, loader)
    app.add_api_route("/held", held, include_in_schema=False)
    run(app, settings)


if __name__ == "__main__":
    main()
