"""Clients as they come: patient ones, ones that leave, that read slowly, that send garbage or too much. Seeded.

Each exchange is one HTTP request on a connection of its own, and says how it ended for its client.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

REFUSED_S = 0.3  # then the next client comes
PATIENT = ("generate", "generate_stream", "completions", "chat")
#: How many of a hundred requests are of which kind.
MIX = {
    "generate": 25,
    "generate_stream": 20,
    "completions": 12,
    "chat": 8,
    "cut": 14,  # leaves a stream somewhere
    "left": 3,  # leaves a plain request without waiting
    "half": 4,  # leaves in the middle of its body
    "slow": 4,
    "garbage": 7,
    "oversize": 3,
}
GARBAGE: list[tuple[str, bytes]] = [
    ("/generate", b"{"),
    ("/generate_stream", b'{"inputs": 7}'),
    ("/", b'{"inputs": "a", "surprise": 1}'),
    ("/v1/completions", b'{"prompt": "a", "max_tokens": -1}'),
    ("/v1/chat/completions", b'{"messages": []}'),
    ("/invocations", b"\x00\xff"),
    ("/generate", json.dumps({"inputs": "a " * 900, "parameters": {"max_new_tokens": 1}}).encode()),
]


@dataclass
class Texts:
    """What is right: of each prompt, the greedy text of 1, 2, … tokens, as a completion and as a chat."""

    completions: Mapping[str, Sequence[str]]
    chats: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass
class Tally:
    """How exchanges ended, by kind and by what the client saw; and every text that was wrong."""

    ends: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def total(self, *ends: str) -> int:
        return sum(count for (_, end), count in self.ends.items() if end in ends)


def head(route: str, length: int, *more: str) -> bytes:
    lines = [f"POST {route} HTTP/1.1", "host: x", "connection: close", "content-type: application/json"]
    return "\r\n".join([*lines, f"content-length: {length}", *more, "", ""]).encode()


def request(route: str, body: Any) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head(route, len(content)) + content


def opened(answer: bytes) -> tuple[int, bytes]:
    """Status and body of a whole answer."""
    top, _, body = answer.partition(b"\r\n\r\n")
    status = int(top.split(b" ", 2)[1])
    if b"transfer-encoding: chunked" not in top.lower():
        return status, body
    parts = []
    while body:
        size, _, rest = body.partition(b"\r\n")
        parts.append(rest[: int(size, 16)])
        body = rest[int(size, 16) + 2 :]
    return status, b"".join(parts)


class Crowd:
    def __init__(self, port: int, texts: Texts, tokens: int, limit: int, seed: int) -> None:
        """`tokens` at most are asked for; bodies have at most `limit` bytes."""
        self.tally = Tally()
        self._port, self._texts, self._tokens, self._limit = port, texts, tokens, limit
        self._random = random.Random(seed)

    async def come(self, requests: int, concurrency: int, mix: Mapping[str, int] | None = None) -> None:
        """All of them, `concurrency` at a time."""
        mix = mix or MIX
        kinds = iter(self._random.choices(list(mix), weights=list(mix.values()), k=requests))

        async def one_after_another() -> None:
            for kind in kinds:
                async with asyncio.timeout(60):
                    end = await self._exchange(kind)
                self.tally.ends[kind, end] += 1
                if end == "429":  # the refused come so fast that nobody else would get in
                    await asyncio.sleep(REFUSED_S)

        await asyncio.gather(*(one_after_another() for _ in range(concurrency)))

    async def _exchange(self, kind: str) -> str:
        prompt = self._random.choice(list(self._texts.completions))
        tokens = self._random.randint(1, self._tokens)
        parameters = {"max_new_tokens": tokens, "ignore_eos": True}
        native = {"inputs": prompt, "parameters": parameters}
        openai = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        right = self._texts.completions[prompt][tokens - 1]
        match kind:
            case "generate":
                return self._judged(await self._whole(request("/generate", native)), right, plain)
            case "generate_stream":
                return self._judged(await self._whole(request("/generate_stream", native)), right, native_events)
            case "completions":
                content = request("/v1/completions", openai | {"prompt": prompt})
                return self._judged(await self._whole(content), right, openai_events)
            case "chat":
                messages = [{"role": "user", "content": prompt}]
                content = request("/v1/chat/completions", openai | {"messages": messages})
                if not self._texts.chats:
                    return self._judged(await self._whole(content), None, openai_events)
                right = self._texts.chats[prompt][tokens - 1]
                return self._judged(await self._whole(content), right, openai_events)
            case "slow":
                answer = await self._whole(request("/generate_stream", native), pause_s=0.02)
                return self._judged(answer, right, native_events, may_be_cut=True)
            case "cut":
                route = self._random.choice(["/generate_stream", "/v1/completions"])
                body = native if route == "/generate_stream" else openai | {"prompt": prompt}
                return await self._left(request(route, body), events=self._random.randint(1, 4))
            case "left":
                return await self._left(request("/generate", native), events=0)
            case "half":
                content = request("/generate", native)
                return await self._left(content[: -self._random.randint(1, 20)], events=0)
            case "garbage":
                status, _ = opened(await self._whole(request(*self._random.choice(GARBAGE))))
                return str(status)
            case _:
                content = head(self._random.choice(["/generate", "/v1/completions"]), self._limit + 1) + b"{" * 64
                status, _ = opened(await self._whole(content))
                return str(status)

    async def _whole(self, content: bytes, pause_s: float = 0.0) -> bytes:
        """The whole answer; with a pause, read through a small window, a little at a time."""
        connection = socket.socket()
        if pause_s:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self._port))
        reader, writer = await asyncio.open_connection(sock=connection, limit=2048 if pause_s else 65536)
        try:
            writer.write(content)
            if not pause_s:
                return await reader.read()
            answer = b""
            while part := await reader.read(256):
                answer += part
                await asyncio.sleep(pause_s)
            return answer
        except ConnectionError:
            return b""
        finally:
            await closed(writer)

    async def _left(self, content: bytes, events: int) -> str:
        """Leave after so many events, or right after the last byte was sent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(content)
            await writer.drain()
            for _ in range(events):
                if not await reader.readline():
                    break
            return "left"
        except ConnectionError:
            return "left"
        finally:
            await closed(writer)

    def _judged(
        self, answer: bytes, right: str | None, text: Callable[[bytes], str | None], may_be_cut: bool = False
    ) -> str:
        if not answer and may_be_cut:
            return "dropped"
        status, body = opened(answer)
        if status != 200:
            return str(status)
        try:
            got = text(body)
        except ValueError:
            if may_be_cut:
                return "dropped"
            raise
        if got is None:
            return "error event"
        if right is not None and got != right:
            self.tally.wrong.append(f"{got!r} instead of {right!r}")
        return "complete"


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def plain(body: bytes) -> str | None:
    return str(json.loads(body)["generated_text"])


def events_of(body: bytes) -> list[Any]:
    blocks = [block.removeprefix(b"data: ") for block in body.split(b"\n\n") if block.startswith(b"data: ")]
    return [json.loads(block) for block in blocks if block != b"[DONE]"]


def native_events(body: bytes) -> str | None:
    """Raises: ValueError where the stream has no end."""
    events = events_of(body)
    if "error" in events[-1]:
        return None
    text = "".join(event["token"]["text"] for event in events)
    if events[-1]["generated_text"] is None:
        raise ValueError("a stream without an end")
    return text if text == events[-1]["generated_text"] else f"{text!r} and {events[-1]['generated_text']!r}"


def openai_events(body: bytes) -> str | None:
    events = events_of(body)
    if "error" in events[-1]:
        return None
    if b"data: [DONE]" not in body:
        raise ValueError("a stream without an end")
    choices = [event["choices"][0] for event in events]
    return "".join(choice["text"] if "text" in choice else choice["delta"].get("content") or "" for choice in choices)


def series(metrics: str, name: str) -> dict[str, float]:
    """The values of a counter or gauge by their labels."""
    found = re.findall(rf"^{name}({{[^}}]*}})? (\S+)$", metrics, re.M)
    return {labels: float(value) for labels, value in found}
