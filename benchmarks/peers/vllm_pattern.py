"""An asyncio + aiohttp client that stamps as vLLM's benchmark does, for comparison with ours: one process, one session.

    python benchmarks/peers/vllm_pattern.py URL STREAMS SECONDS INPUT_TOKENS NEW_TOKENS OUT

Every stream is a task that sends its next request when its last one has ended, and reads `response.content` line by
line; the clock is read after a line was parsed. Writes one JSON object a request, and one of the process.
Source of the pattern: vllm-project/vllm, benchmarks/lib/endpoint_request_func.py, async_request_tgi.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp


async def request(session: aiohttp.ClientSession, url: str, body: dict[str, Any], name: str, scheduled: int) -> Any:
    events: list[int] = []
    started = time.monotonic_ns()
    async with session.post(url, json=body, headers={"x-request-id": name}) as response:
        async for chunk in response.content:
            line = chunk.strip()
            if not line or line.startswith(b":"):
                continue
            json.loads(line.removeprefix(b"data:"))
            events.append(time.monotonic_ns())
    return {"id": name, "scheduled_ns": scheduled, "started_ns": started, "events": events}


async def main(url: str, streams: int, seconds: float, input_tokens: int, new_tokens: int, out: Path) -> None:
    done: list[Any] = []
    body = {"inputs": "word " * input_tokens, "parameters": {"max_new_tokens": new_tokens, "details": True}}
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=10 * 2**20) as session:
        began_s, cpu_s = time.monotonic(), time.process_time()

        async def user(number: int) -> None:
            ended, turn = time.monotonic_ns(), 0
            while time.monotonic() < began_s + seconds:
                sample = await request(session, f"{url}/generate_stream", body, f"peer-{number}-{turn}", ended)
                sample["phase"] = "steady" if turn else "warmup"
                done.append(sample)
                ended, turn = time.monotonic_ns(), turn + 1

        await asyncio.gather(*(user(number) for number in range(streams)))
        wall_s, used_s = time.monotonic() - began_s, time.process_time() - cpu_s
    with out.open("w") as lines:
        for sample in done:
            lines.write(json.dumps(sample) + "\n")
        lines.write(json.dumps({"wall_s": wall_s, "cpu_s": used_s}) + "\n")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    asyncio.run(main(arguments[0], *(int(a) for a in arguments[1:5]), Path(arguments[5])))
