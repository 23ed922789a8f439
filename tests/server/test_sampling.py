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
from server.backends.sampling import Sampler
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
