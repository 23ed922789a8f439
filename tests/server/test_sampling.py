"""Drawn tokens come as often as softmax says, after temperature, top-k and top-p; penalties follow their formula.

Method: many seeds, the first token each of them draws, a chi-squared statistic against probabilities that are computed
here from their definitions. Seeds are fixed, so the statistic is too; its limit is mean plus five standard deviations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from server.backends.base import Sampling
from server.backends.sampling import Sampler, likeliest
from server.settings import Settings

LOGITS = np.array([2.0, 1.5, 1.4, 0.3, 0.0, -0.2, -1.0, -3.0])
PROMPT = torch.tensor([[0, 1]])


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def keep_top_k(p: np.ndarray, k: int) -> np.ndarray:
    kept = np.where(p >= np.sort(p)[-k], p, 0)
    return kept / kept.sum()


def keep_top_p(p: np.ndarray, share: float) -> np.ndarray:
    """The smallest set of likeliest tokens whose probability reaches the share."""
    order = np.argsort(-p)
    enough = int(np.searchsorted(np.cumsum(p[order]), share)) + 1
    kept = np.zeros_like(p)
    kept[order[:enough]] = p[order[:enough]]
    return kept / kept.sum()


def assert_drawn_from(drawn: Counter[int], p: np.ndarray) -> None:
    draws = sum(drawn.values())
    assert draws >= 500
    assert {token for token in drawn if p[token] == 0} == set()
    likely = [token for token in range(len(p)) if p[token] * draws >= 5]
    rest = draws - sum(drawn[token] for token in likely)
    expected = [p[token] * draws for token in likely]
    observed = [drawn[token] for token in likely]
    if draws - sum(expected) >= 5:
        expected.append(draws - sum(expected))
        observed.append(rest)
    freedom = len(expected) - 1
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True))
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5 + 1e-9, (statistic, freedom)


def first_tokens(draws: int, **sampling: Any) -> Counter[int]:
    logits = torch.tensor(LOGITS, dtype=torch.float32)[None]
    logprobs = logits.log_softmax(-1)
    return Counter(
        Sampler(Sampling(do_sample=True, seed=seed, **sampling), 2, (), ()).choose(PROMPT, logits, logprobs).token_id
        for seed in range(draws)
    )


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({}, softmax(LOGITS)),
        ({"temperature": 0.5}, softmax(LOGITS / 0.5)),
        ({"temperature": 3.0}, softmax(LOGITS / 3.0)),
        ({"top_k": 3}, keep_top_k(softmax(LOGITS), 3)),
        ({"top_p": 0.7}, keep_top_p(softmax(LOGITS), 0.7)),
        ({"temperature": 2.0, "top_k": 5, "top_p": 0.8}, keep_top_p(keep_top_k(softmax(LOGITS / 2), 5), 0.8)),
    ],
)
def test_frequencies_agree_with_softmax(sampling: dict[str, Any], expected: np.ndarray):
    assert_drawn_from(first_tokens(4000, **sampling), expected)


def test_the_statistic_can_fail():
    with pytest.raises(AssertionError):
        assert_drawn_from(first_tokens(4000, temperature=0.9), softmax(LOGITS))


def test_frequencies_over_http_agree_with_the_plain_model(serve: Callable[..., Any], splitting_folder: Path):
    # The same through everything: 20 requests of 32 texts each, seeds counted up by the server.
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(splitting_folder)("The clock", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(splitting_folder)(torch.tensor([ids])).logits[0, -1]
    expected = keep_top_p(keep_top_k(softmax(logits.double().numpy() / 0.7), 6), 0.9)
    drawn: Counter[int] = Counter()
    with serve(Settings(model=str(splitting_folder), max_total_tokens=64, threads=1)) as client:
        for request in range(20):
            asked = {"prompt": ids, "n": 32, "seed": 1000 * request, "max_tokens": 1, "logprobs": 0}
            asked |= {"temperature": 0.7, "top_k": 6, "top_p": 0.9}
            for choice in client.post("/v1/completions", json=asked).json()["choices"]:
                (logprob,) = choice["logprobs"]["token_logprobs"]
                nearest = (logits.log_softmax(-1) - logprob).abs().argmin()  # the text of single bytes is ambiguous
                drawn[int(nearest)] += 1
    assert_drawn_from(drawn, expected)


@pytest.mark.parametrize(("frequency", "presence"), [(0.5, 0.0), (0.0, 1.5), (-1.0, 0.25)])
def test_additive_penalties_count_generated_tokens_alone(frequency: float, presence: float):
    prompt, generated = [3, 3, 3, 5], [0, 0, 2, 7, 0]
    said = torch.tensor([prompt + generated])
    logits = torch.tensor(LOGITS, dtype=torch.float32)[None]
    counts = np.array([generated.count(token) for token in range(len(LOGITS))])
    penalized = LOGITS - frequency * counts - presence * (counts > 0)
    drawn = Counter(
        Sampler(
            Sampling(do_sample=True, seed=seed, frequency_penalty=frequency, presence_penalty=presence),
            len(prompt),
            (),
            (),
        )
        .choose(said, logits, logits.log_softmax(-1))
        .token_id
        for seed in range(2000)
    )
    assert_drawn_from(drawn, softmax(penalized))


def test_seeds_repeat_and_differ():
    assert first_tokens(600) == first_tokens(600)
    assert len(first_tokens(600)) > 4


def test_rows_that_take_the_likeliest_are_chosen_at_once_as_one_by_one():
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(64, 12, generator=generator)
    logprobs = logits.log_softmax(-1)
    never = [(), (3,), tuple(range(0, 12, 2)), (5, 11, 12, 40)]  # a tokenizer may have ids that its model lacks
    samplers = [
        Sampler(Sampling(ignore_eos=row % 3 == 0), 2, never[row % 4], (7, 99) if row % 2 else ()) for row in range(64)
    ]
    assert all(sampler.takes_likeliest for sampler in samplers)
    rows = zip(samplers, logits.split(1), logprobs.split(1), strict=True)
    one_by_one = [sampler.choose(PROMPT, row, thought) for sampler, row, thought in rows]
    at_once = likeliest(samplers, logits, logprobs)
    assert at_once == one_by_one
    for row, step in enumerate(at_once):
        banned = {*never[row % 4], *((7,) if row % 2 and row % 3 == 0 else ())}
        allowed = [token for token in range(12) if token not in banned]
        assert step.token_id == max(allowed, key=lambda token: float(logits[row, token]))
        assert step.score is not None
        assert step.score.logprob == float(logprobs[row, step.token_id]), "of the model, before anything was forbidden"
    assert likeliest([], logits[:0], logprobs[:0]) == []


@pytest.mark.parametrize(
    "sampling", [{"do_sample": True}, {"repetition_penalty": 1.1}, {"top_n_tokens": 2}, {"frequency_penalty": 0.5}]
)
def test_what_looks_back_draws_or_tells_more_is_not_chosen_at_once(sampling: dict[str, Any]):
    assert not Sampler(Sampling(**sampling), 2, (), ()).takes_likeliest
