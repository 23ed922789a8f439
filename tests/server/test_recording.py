"""A recorded pass gives what the model gives, and a model that can't be recorded runs as it is.

The oracle is the same pass run by the interpreter, and torch's own attention and linear layer.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from server.backends.base import Sampling
from server.backends.passes import DecodePass, PromptPass
from server.backends.recording import FEW, FewRows, causal, one_query, product_of_few, recorded, recorded_by_rows
from server.backends.transformers_cpu import WINDOW, TransformersBackend

SLOTS = FEW + 2  # few rows, and more


class Stranger(torch.nn.Module):
    """A model of one layer whose logits are its keys, by a rule of its own."""

    config = SimpleNamespace(_attn_implementation="eager")

    def __init__(self, rule: Any) -> None:
        super().__init__()
        self._rule = rule

    def set_attn_implementation(self, name: str) -> None: ...

    def forward(self, input_ids: torch.Tensor, past_key_values: Any, **_: Any) -> Any:
        states = input_ids.float()[:, None, :, None].expand(-1, 1, -1, 8)
        keys, _ = past_key_values.update(states, states, 0)
        return SimpleNamespace(logits=self._rule(input_ids, keys).view(-1, 1, 8))


def prompt(length: int, token_id: int) -> list[torch.Tensor]:
    return [torch.full((length,), token_id), torch.arange(length), *(torch.zeros(1, 1, length, 8) for _ in range(2))]


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


@pytest.mark.parametrize(("rule", "is_recorded"), [(plain, True), (by_value, False), (ByHistory, False)])
def test_only_a_pass_that_can_be_replayed_is_recorded(rule: Any, is_recorded: bool):
    of = Stranger(rule() if isinstance(rule, type) else rule)
    step = DecodePass(of)
    for multiplying in (None, FewRows()):
        found = recorded(step, "steps", inputs(2, 16, 1), inputs(1, 32, 2), multiplying)
        assert (found is not step) == is_recorded
    whole = PromptPass(of)
    assert (recorded(whole, "prompts", prompt(7, 1), prompt(5, 2)) is not whole) == is_recorded


@pytest.mark.parametrize("length", [3, WINDOW - 1, WINDOW + 2])
def test_the_recorded_step_gives_what_the_interpreter_gives_for_any_rows_and_window(demo_folder: Path, length: int):
    backend = TransformersBackend.load(str(demo_folder), SLOTS, 2 * WINDOW, 1, [])
    by_model = DecodePass(backend._model)
    for slot in range(SLOTS):
        backend.prefill(slot, [3 + (7 * slot + i) % 900 for i in range(length - slot % 2)], Sampling())
    with torch.inference_mode():
        for first in range(SLOTS):
            for end in range(first + 1, SLOTS + 1):
                given = backend._step_inputs(slice(first, end), length + 1)
                wanted = by_model(*given)
                assert wanted.shape == (end - first, backend.limits.vocabulary)
                torch.testing.assert_close(backend._step(*given), wanted, rtol=1e-4, atol=1e-4)


def test_both_passes_of_the_demonstration_model_are_recorded(demo_folder: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    TransformersBackend.load(str(demo_folder), SLOTS, WINDOW, 1, [])
    said = [record.getMessage() for record in caplog.records if "recorded" in record.getMessage()]
    of_steps = [f"decode steps of {rows} rows are recorded" for rows in (f"up to {FEW}", "any number of")]
    assert said == ["prompts are recorded", *of_steps]


def test_the_log_says_what_kept_a_model_from_being_recorded(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    recorded(DecodePass(Stranger(by_value)), "steps", inputs(2, 16, 1), inputs(1, 32, 2))
    assert "steps run through the interpreter: Converting a tensor to a Python boolean" in caplog.text


@pytest.mark.parametrize("slots", [1, FEW, FEW + 1])
def test_the_weights_are_multiplied_by_few_rows_and_many_rows_by_the_weights(demo_folder: Path, slots: int):
    backend = TransformersBackend.load(str(demo_folder), slots, WINDOW, 1, [])
    with torch.inference_mode():
        for rows in range(1, slots + 1):
            given = backend._step_inputs(slice(0, rows), 1)
            with torch.profiler.profile() as profile:
                backend._step(*given)
            linear = sum(each.count for each in profile.key_averages() if each.key == "aten::linear")
            assert bool(linear) == (rows > FEW)


class Odd(Stranger):
    """Its linear layer's input has a shape that `product_of_few` doesn't know."""

    def __init__(self) -> None:
        super().__init__(plain)
        self.weight = torch.eye(8)

    def forward(self, input_ids: torch.Tensor, past_key_values: Any, **more: Any) -> Any:
        logits = super().forward(input_ids, past_key_values, **more).logits
        return SimpleNamespace(logits=torch.nn.functional.linear(logits[:, :, None], self.weight)[:, :, 0])


@pytest.mark.parametrize("slots", [2, FEW + 1])
def test_a_step_that_few_rows_can_not_be_recorded_for_is_recorded_without(slots: int):
    by_model = DecodePass(Odd())
    found = recorded_by_rows(by_model, slots, inputs(2, 16, 1), inputs(1, 32, 2))
    assert found is not by_model
    torch.testing.assert_close(found(*inputs(2, 32, 3)), by_model(*inputs(2, 32, 3)))


@pytest.mark.parametrize("length", [1, 2, 4, 5, 23, WINDOW, 2 * WINDOW - 1])
def test_the_recorded_prompt_gives_what_the_interpreter_gives_and_leaves_the_same_keys_and_values(
    demo_folder: Path, length: int
):
    backend = TransformersBackend.load(str(demo_folder), 2, 2 * WINDOW, 1, [])
    with torch.inference_mode():
        given = backend._prompt_inputs(1, [3 + 7 * i % 900 for i in range(length)])
        found, left = backend._prompt(*given), [rows.clone() for rows in given[2:]]
        for rows in given[2:]:
            rows.zero_()
        wanted = PromptPass(backend._model)(*given)
    assert wanted.shape == (1, backend.limits.vocabulary)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    for mine, its in zip(left, given[2:], strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fails", ["prompt", "step"])
def test_nothing_of_a_text_reaches_the_next_one_in_its_slot(demo_folder: Path, fails: str):
    backend, fresh = (TransformersBackend.load(str(demo_folder), 1, 64, 1, []) for _ in range(2))

    def spoil(*given: torch.Tensor) -> torch.Tensor:
        for rows in given[2 if fails == "prompt" else 4 :]:
            rows[:, :, :41] = float("nan")  # what a prompt of 41 tokens, and a step after 40, may have written
        raise RuntimeError("stumbled")

    prompt_pass, step = backend._prompt, backend._step
    if fails == "prompt":
        backend._prompt = spoil
        with pytest.raises(RuntimeError):
            backend.prefill(0, list(range(5, 46)), Sampling())
    else:
        backend._step = spoil
        backend.prefill(0, list(range(5, 45)), Sampling())
        with pytest.raises(RuntimeError):
            backend.decode()
    backend.release(0)
    backend._prompt, backend._step = prompt_pass, step
    for each in (backend, fresh):
        each.prefill(0, [7, 8, 9], Sampling())
    for _ in range(WINDOW // 8):
        assert backend.decode() == fresh.decode()


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
@pytest.mark.parametrize("queries", [1, 9])
def test_attention_by_hand_is_sdpa(kv_heads: int, queries: int):
    seeded = torch.Generator().manual_seed(kv_heads)
    query, key, value = (
        torch.randn(1 if queries > 1 else 3, heads, n, 16, generator=seeded)
        for heads, n in ((4, queries), (kv_heads, 9), (kv_heads, 9))
    )
    unseen = torch.finfo(torch.float32).min
    mask = torch.full((1, 1, 9, 9), unseen).triu(1) if queries > 1 else torch.zeros(3, 1, 1, 9)
    if queries == 1:
        mask[..., 5:] = unseen
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True)
    by_hand = one_query if queries == 1 else causal
    found, _ = by_hand(None, query, key, value, mask, scaling=0.3)
    torch.testing.assert_close(found, wanted.transpose(1, 2))


@pytest.mark.parametrize("rows", [1, 2, FEW])
@pytest.mark.parametrize("shape", [(24,), (1, 24)])
@pytest.mark.parametrize("biased", [False, True])
def test_the_product_of_few_rows_is_the_linear_layers(rows: int, shape: tuple[int, ...], biased: bool):
    seeded = torch.Generator().manual_seed(rows)
    x, weight, bias = (torch.randn(size, generator=seeded) for size in ((rows, *shape), (40, 24), (40,)))
    given = (x, weight, bias) if biased else (x, weight)
    found = product_of_few(*given)
    assert found.is_contiguous()
    torch.testing.assert_close(found, torch.nn.functional.linear(*given))
