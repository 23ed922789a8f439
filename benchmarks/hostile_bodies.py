"""How long one body keeps everybody else waiting: the longest /ping while it is read, as a multiple of a quiet one.

    python -m server serve --port 8124 --max-total-tokens 512 &
    python benchmarks/hostile_bodies.py http://127.0.0.1:8124

The bodies are as long as the server reads, and wrong or expensive in every way that was found. Ratios are of one run on
one machine; absolute times say little.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import threading
import time
from typing import Any

import httpx

MANY = 157_000
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
NAMES = {f"k{i}": 1 for i in range(MANY)}
USER = {"role": "user", "content": "a"}
BODIES: dict[str, tuple[str, Any]] = {
    "messages that are numbers": (CHAT, {"messages": [1] * 995_000}),
    "a content of numbers": (CHAT, {"messages": [{"role": "user", "content": [1] * 995_000}]}),
    "50,000 good messages": (CHAT, {"messages": [USER] * 50_000}),
    "metadata of 157,000 names": (CHAT, {"messages": [USER], "metadata": NAMES, "max_tokens": 1}),
    "unknown names": ("/generate", {"inputs": "a", **NAMES}),
    "unknown parameters": ("/generate", {"inputs": "a", "parameters": NAMES}),
    "stops that are numbers": ("/generate", {"inputs": "a", "parameters": {"stop": [1] * 995_000}}),
    "a prompt of 660,000 ids": (COMPLETIONS, {"prompt": [12] * 660_000}),
    "400,000 prompts": (COMPLETIONS, {"prompt": [[1]] * 400_000}),
    "a text of 2 MB": ("/generate", {"inputs": "tick " * 390_000}),
    "a text of 2 MB to /tokenize": ("/tokenize", {"inputs": "tick " * 390_000}),
    "32 echoed prompts with log probabilities": (
        COMPLETIONS,
        {
            "prompt": [[random.Random(i).randrange(3, 900) for _ in range(400)] for i in range(32)],
            "echo": True,
            "logprobs": 5,
            "max_tokens": 1,
        },
    ),
}


def longest_ping(client: httpx.Client, until: threading.Event) -> float:
    longest = 0.0
    while not until.is_set():
        began = time.perf_counter()
        client.get("/ping")
        longest = max(longest, time.perf_counter() - began)
    return longest


def quiet(client: httpx.Client) -> float:
    """The median of the longest of 100 pings, ten times."""
    longest = []
    for _ in range(10):
        pings = []
        for _ in range(100):
            began = time.perf_counter()
            client.get("/ping")
            pings.append(time.perf_counter() - began)
        longest.append(max(pings))
    return statistics.median(longest)


def main(url: str) -> None:
    with httpx.Client(base_url=url, timeout=120) as client:
        calm = quiet(client)
        print(f"{'quiet':44} longest /ping {calm * 1e3:7.1f} ms")
        for name, (route, body) in BODIES.items():
            content = json.dumps(body, separators=(",", ":")).encode()
            done, statuses = threading.Event(), []

            def post(route: str = route, content: bytes = content, done: Any = done, statuses: Any = statuses) -> None:
                headers = {"content-type": "application/json"}
                statuses.append(httpx.post(url + route, content=content, headers=headers, timeout=120).status_code)
                done.set()

            thread = threading.Thread(target=post)
            thread.start()
            longest = longest_ping(client, done)
            thread.join()
            told = f"{name:44} longest /ping {longest * 1e3:7.1f} ms, {longest / calm:5.0f} times quiet"
            print(f"{told}, {len(content):>9,} bytes, status {statuses[0]}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"))
