"""Tokens cross from the engine's thread to the event loop: none lost, in order, together where the loop is behind."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence

import pytest

from server.backends.base import Sampling
from server.engine.engine import Batch
from server.engine.request import Delivery, Request, Task, Token
from server.relay import Relay


def request(deliver: Callable[[Sequence[Delivery]], None]) -> Request:
    return Request("r", Task("", (1,), 9, Sampling()), deliver)


def token(index: int) -> Token:
    return Token(index, index, "", None, special=False)


def carried(*steps: Batch, at_once: bool) -> None:
    """Hand the steps over, and let the loop turn after each, or after all of them."""

    async def scenario() -> None:
        relay = Relay(asyncio.get_running_loop())
        for step in steps:
            engine = threading.Thread(target=relay.hand_over, args=(step,))
            engine.start()
            engine.join()
            if not at_once:
                await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(scenario())


@pytest.mark.parametrize("at_once", [False, True])
def test_a_request_hears_at_once_of_all_steps_that_the_loop_is_behind_by(at_once: bool):
    heard: dict[str, list[list[int]]] = {"a": [], "b": []}

    def of(name: str) -> Request:
        return request(lambda came: heard[name].append([each.index for each in came if isinstance(each, Token)]))

    a, b = of("a"), of("b")
    carried([(a, token(1)), (b, token(1))], [(a, token(2))], [(b, token(2)), (a, token(3))], at_once=at_once)
    assert heard == ({"a": [[1, 2, 3]], "b": [[1, 2]]} if at_once else {"a": [[1], [2], [3]], "b": [[1], [2]]})


@pytest.mark.parametrize("at_once", [False, True])
def test_a_fault_with_one_stream_is_not_the_others(caplog: pytest.LogCaptureFixture, at_once: bool):
    heard: list[int] = []

    def broken(came: Sequence[Delivery]) -> None:
        raise ValueError("its reader is broken")

    steps = [[(request(broken), token(1)), (request(lambda came: heard.append(len(came))), token(1))]] * 2
    with caplog.at_level(logging.ERROR, "server.relay"):
        carried(*steps, at_once=at_once)
    assert heard == ([2] if at_once else [1, 1])
    assert {record.getMessage() for record in caplog.records} == {"r: a token could not be delivered"}


def test_a_loop_that_is_closed_is_no_error():
    loop = asyncio.new_event_loop()
    loop.close()
    Relay(loop).hand_over([(request(lambda came: None), token(1))])
