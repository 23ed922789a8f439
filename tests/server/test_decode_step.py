"""A recorded decode step gives what the model gives, and a model that can't be recorded runs as it is.

The oracle is the same step run by the interpreter, and torch's own attention.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from server.backends.base import Sampling
from server.backends.decode_step import DecodeStep, attention, recorded
from server.backends.transformers_cpu import WINDOW, TransformersBackend

SLOTS = 4


class Stranger(torch.nn.Module):
    """A model of one layer whose logits are its keys, by a rule of its own."""

    config = SimpleNamespace(_attn_implementation="eager")

    def __init__(self, rule: Any) -> None:
        super().__init__()
        self._rule = rule

    def set_attn_implementation(self, name: str) -> None: ...

    def forward(self, input_ids: torch.Tensor, past_key_values: Any, **_: Any) -> Any:
        states = input_ids.float().view(-1, 1, 1, 1).expand(-1, 1, 1, 8)
        keys, _ = past_key_values.update(states, states, 0)
        return SimpleNamespace(logits=self._rule(input_ids, keys).view(-1, 1, 8))


def inputs(rows: int, window: int, token_id: int) -> list[torch.Tensor]:
    seeded = torch.Generator().manual_seed(window)
    keys, values = (torch.randn(rows, 1, window, 8, generator=seeded) for _ in range(2))
    positions = torch.arange(rows)
    mask = torch.zeros(rows, 1, 1, window)
    return [torch.full((rows, 1), token_id), positions, mask, torch.tensor([window - 1]), keys, values]


def plain(_: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return keys.sum(2)


def by_value(token_ids: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return keys.sum(2) if token_ids.sum() > 5 else keys.amax(2)


class ByHistory:
    """What no recording can see, and nothing warns of."""

    calls = 0

    def __call__(self, _: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return keys.sum(2) * torch.arange(8) ** self.calls


@pytest.mark.parametrize(("rule", "is_recorded"), [(plain, True), (by_value, False), (ByHistory(), False)])
def test_only_a_step_that_can_be_replayed_is_recorded(rule: Any, is_recorded: bool):
    step = DecodeStep(Stranger(rule), takes_cache_position=False)
    found = recorded(step, step._model, inputs(2, 16, 1), inputs(1, 32, 2))
    assert (found is not step) == is_recorded


@pytest.mark.parametrize("length", [3, WINDOW - 1, WINDOW + 2])
def test_the_recorded_step_gives_what_the_interpreter_gives_for_any_rows_and_window(demo_folder: Path, length: int):
    backend = TransformersBackend.load(str(demo_folder), SLOTS, 2 * WINDOW, 1, [])
    assert backend._step is not backend._eager, "the demonstration model is not recorded"
    for slot in range(SLOTS):
        backend.prefill(slot, [3 + (7 * slot + i) % 900 for i in range(length - slot % 2)], Sampling())
    with torch.inference_mode():
        for first in range(SLOTS):
            for end in range(first + 1, SLOTS + 1):
                given = backend._inputs(slice(first, end), length + 1)
                wanted = backend._eager(*given)
                assert wanted.shape == (end - first, backend.limits.vocabulary)
                torch.testing.assert_close(backend._step(*given), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("live", [(0,), (3,), (1, 2), (0, 3)])
def test_a_step_runs_the_rows_from_the_first_live_one_to_the_last(demo_folder: Path, live: tuple[int, ...]):
    backend = TransformersBackend.load(str(demo_folder), SLOTS, WINDOW, 1, [])
    rows, step = [], backend._step

    def counted(token_ids: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        rows.append(len(token_ids))
        return step(token_ids, *more)

    backend._step = counted
    for slot in live:
        backend.prefill(slot, [5 + slot], Sampling())
    assert backend.decode().keys() == set(live)
    assert rows == [live[-1] - live[0] + 1]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_by_hand_is_sdpa(kv_heads: int):
    seeded = torch.Generator().manual_seed(kv_heads)
    query, key, value = (
        torch.randn(3, heads, n, 16, generator=seeded) for heads, n in ((4, 1), (kv_heads, 9), (kv_heads, 9))
    )
    mask = torch.zeros(3, 1, 1, 9)
    mask[..., 5:] = torch.finfo(torch.float32).min
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)
    found, _ = attention(None, query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(found, wanted.transpose(1, 2))
