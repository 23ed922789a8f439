"""The CPU backend over HTTP beside `transformers serve`, and beside a hand-written loop without a server.

    python3.11 -m venv peer && peer/bin/pip install 'torch==2.13.0' 'transformers[serving]>=5'
    python benchmarks/cpu_backend.py --peer peer              # both models, 10 rounds of each; about 6 minutes
    python benchmarks/cpu_backend.py --peer peer --model demo --rounds 40     # as many as a noisy machine needs

Two Llamas of random weights, made here: the demonstration model's shape and one 16 times as large, both with its
tokenizer, and with the ids that it mustn't emit out of reach, `</s>` among them, so that every text has its full length
and no server has to suppress anything. Each server holds the model in fp32, with one thread, on core 0: ours with SLOTS
slots; transformers 5 with continuous batching, in a virtual environment of its own; the loop
(benchmarks/peers/static_loop.py) with a batch of as many rows as there are users.

The client is the load tester's own, on core 1. A round sends a wave of 1 and one of SLOTS users to each by turns, over
/v1/completions, greedy, INPUT_TOKENS → NEW_TOKENS tokens, the same prompts to each and no prompt twice. tokens/s of a
wave: users × NEW_TOKENS / (its last token − its release). TTFT, from the release: the median of its users', and its
last user's. The table has medians over rounds; a ratio is of two waves of one round, its median and range. Last, the
texts of a few prompts are compared, each asked for alone.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # benchmarks/server.py is no package `server`

from loadtest import runner  # isort: skip  # noqa: E402, F401  (first: importing locust patches sockets, as in a run)

import gevent  # noqa: E402
import httpx  # noqa: E402

from benchmarks.cpu_models import MODELS, write_model  # noqa: E402
from loadtest.dispatch import ids  # noqa: E402
from loadtest.endpoints.choice import Wanted  # noqa: E402
from loadtest.measure import Order, measure  # noqa: E402
from loadtest.plan import Cell  # noqa: E402
from loadtest.site import Look, Site  # noqa: E402
from loadtest.transport.base import Connection, Timeouts, monotonic_ns  # noqa: E402
from loadtest.transport.choice import connecting, controlling  # noqa: E402
from loadtest.transport.tls import Tls  # noqa: E402

OURS, PEER, LOOP = "tokenclock", "transformers serve", "static-cache loop"
SLOTS, THREADS = 4, 1
INPUT_TOKENS, NEW_TOKENS = 64, 64
#: Of seven sizes of the peer's cache and batch the fastest here; its own, made for a GPU, take gigabytes.
PEER_SIZES = ("--cb-block-size", "32", "--cb-num-blocks", "16", "--cb-max-batch-tokens", "256")
WARM_UP = 2  # rounds
PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Wave:
    tokens_per_s: float
    ttft_s: float
    last_ttft_s: float


@contextmanager
def running(command: Sequence[str], **pipes: Any) -> Iterator[subprocess.Popen[str]]:
    """A process on core 0."""
    environment = {"OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {0}),
        **pipes,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@contextmanager
def served(command: Sequence[str], log: Path) -> Iterator[str]:
    """The URL of a server that is ready; what it says goes to `log`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with log.open("w") as said, running([*command, "--port", str(port)], stdout=said, stderr=said) as process:
        url, until = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE_S
        while not healthy(url):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{' '.join(command)} does not serve: {log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield url


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


class Server:
    """One that is measured over HTTP."""

    def __init__(self, name: str, url: str, model: str) -> None:
        wanted = Wanted("openai-completions", model, extra_body={"ignore_eos": None})  # not all know it
        look = Look(connecting("gevent", Tls()), controlling("gevent", Tls()), wanted)
        self.site: Site = look.at(url, name, [INPUT_TOKENS], INPUT_TOKENS + NEW_TOKENS)
        self._model = model
        self._connections: list[Connection] = [self.site.connect(self.site.target) for _ in range(SLOTS)]
        self._next_id = ids(name, 0)

    def wave(self, prompts: Sequence[str]) -> Wave:
        """Raises: SystemExit where an answer isn't what was asked for."""
        cell = Cell(None, None, len(prompts), INPUT_TOKENS, NEW_TOKENS)
        for connection in self._connections:
            connection.ready(10)
        released_ns = monotonic_ns()

        def one(user: int, prompt: str) -> Any:
            order = Order(next(self._next_id), cell, "steady", prompt, released_ns)
            return measure(
                self._connections[user], self.site.endpoint, order, run="", process=0, user=user, timeouts=Timeouts()
            )

        users = [gevent.spawn(one, user, prompt) for user, prompt in enumerate(prompts)]
        samples = [user.get() for user in users]
        got = {(str(sample.verdict), sample.got.input_tokens, sample.got.new_tokens) for sample in samples}
        if got != {("complete", INPUT_TOKENS, NEW_TOKENS)}:
            raise SystemExit(f"{self.site.url} answers {got}; {[sample.detail for sample in samples]}")
        whole_s = (max(sample.events[-1][0] for sample in samples) - released_ns) / 1e9
        ttfts_s = [(sample.events[0][0] - released_ns) / 1e9 for sample in samples]
        return Wave(len(prompts) * NEW_TOKENS / whole_s, statistics.median(ttfts_s), max(ttfts_s))

    def text(self, prompt: str) -> str:
        body = {"model": self._model, "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0}
        answer = httpx.post(f"{self.site.url}/v1/completions", json=body, timeout=PATIENCE_S)
        return str(answer.raise_for_status().json()["choices"][0]["text"])


class Loop:
    def __init__(self, process: subprocess.Popen[str], tokenizer: Any) -> None:
        self._process, self._tokenizer = process, tokenizer

    def wave(self, prompts: Sequence[str]) -> Wave:
        said = self._run(prompts)
        return Wave(len(prompts) * NEW_TOKENS / said["whole_s"], said["first_s"], said["first_s"])

    def text(self, prompt: str) -> str:
        return str(self._tokenizer.decode(self._run([prompt])["tokens"][0], skip_special_tokens=True))

    def _run(self, prompts: Sequence[str]) -> Any:
        token_ids = self._tokenizer(list(prompts))["input_ids"]
        assert all(len(each) == INPUT_TOKENS for each in token_ids)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(token_ids) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def table(users: int, waves: dict[str, list[Wave]]) -> Iterator[str]:
    """Medians of the rounds, and what ours are of each other's in the same round."""
    yield f"\n{users} user{'s' if users > 1 else ''}\n"
    yield "| | tokens/s | TTFT, ms | last user's TTFT, ms |\n|---|---|---|---|"
    scales = {"tokens_per_s": 1.0, "ttft_s": 1e3, "last_ttft_s": 1e3}
    for name, of_it in waves.items():
        middles = [statistics.median(getattr(wave, field) for wave in of_it) * scales[field] for field in scales]
        yield f"| {name} | {' | '.join(f'{middle:.1f}' for middle in middles)} |"
    for name, of_it in waves.items():
        if name != OURS:
            pairs = list(zip(waves[OURS], of_it, strict=True))
            ratios = [[getattr(mine, field) / getattr(its, field) for mine, its in pairs] for field in scales]
            shown = (f"{statistics.median(each):.2f} ({min(each):.2f}–{max(each):.2f})" for each in ratios)
            yield f"| ours by {name} | {' | '.join(shown)} |"


def compare(folder: Path, peer: Path, rounds: int) -> Iterator[str]:
    """Lines of the tables of one model."""
    from transformers import AutoTokenizer

    sizes = ["--slots", str(SLOTS), "--threads", str(THREADS)]
    ours = [sys.executable, "-m", "server", "serve", "--backend", "cpu", "--model", str(folder), *sizes]
    its = [
        str(peer / "bin/transformers"),
        "serve",
        str(folder),
        "--device",
        "cpu",
        "--continuous-batching",
        *PEER_SIZES,
    ]
    loop = [sys.executable, "-m", "benchmarks.peers.static_loop", str(folder), str(THREADS), str(NEW_TOKENS)]
    with ExitStack() as stack, TemporaryDirectory() as logs:
        servers = {
            name: Server(name, stack.enter_context(served(command, Path(logs, name))), str(folder))
            for name, command in ((OURS, ours), (PEER, its))
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = stack.enter_context(running(loop, **pipes))
        measured = {**servers, LOOP: Loop(process, AutoTokenizer.from_pretrained(folder))}
        prompts = servers[OURS].site.prompts
        cell = Cell(None, None, SLOTS, INPUT_TOKENS, NEW_TOKENS)
        waves: dict[int, dict[str, list[Wave]]] = {users: {name: [] for name in measured} for users in (1, SLOTS)}
        for number in range(WARM_UP + rounds):
            for users, of_users in waves.items():
                drawn = [str(prompts.drawn_for(cell)[0]) for _ in range(users)]
                for name, each in measured.items():
                    wave = each.wave(drawn)
                    if number >= WARM_UP:
                        of_users[name].append(wave)
        for users, of_users in waves.items():
            yield from table(users, of_users)
        drawn = [str(prompts.drawn_for(cell)[0]) for _ in range(rounds)]
        texts = {name: [each.text(prompt) for prompt in drawn] for name, each in measured.items()}
        for name in (PEER, LOOP):
            same = sum(mine == other for mine, other in zip(texts[OURS], texts[name], strict=True))
            yield f"\nThe same text as the {name}'s: {same} of {rounds}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peer", type=Path, required=True, metavar="VENV", help="with transformers[serving]>=5")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=10)
    wanted = parser.parse_args()
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("one core for the servers and one for the client are needed")
    os.sched_setaffinity(0, {1})
    for name in wanted.model:
        with TemporaryDirectory(prefix=name) as folder:
            parameters = write_model(Path(folder), MODELS[name])
            shown = f"{parameters / 1e6:.1f} M parameters, {INPUT_TOKENS} → {NEW_TOKENS} tokens, {wanted.rounds} rounds"
            print(f"\n{name}: {shown}", flush=True)
            for line in compare(Path(folder), wanted.peer.resolve(), wanted.rounds):
                print(line, flush=True)


if __name__ == "__main__":
    main()
