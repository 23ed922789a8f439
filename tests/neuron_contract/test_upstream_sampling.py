"""How optimum-neuron samples on the device: frequencies of 2,048 seeded draws and more, against closed forms.

Method: a graph of 512 rows decodes the same token at position 0 in every row, so that one call gives 512 independent
draws of one distribution, which transformers' logits give exactly. Tolerance: chi-squared, its mean and five standard
deviations.
These tests fail when upstream changes its rules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.neuron_contract.conftest import Compiled

torch = pytest.importorskip("torch")
ROWS = 512
TOKEN = 123
MAX_TOPK = 256  # upstream's default
Draw = Callable[..., Any]


@pytest.fixture(scope="module")
def draw(compiled: Compiled, gqa_folder: Path) -> Draw:
    """draw(params, calls) → int64[calls × 512] tokens; params are one triple for all rows, or one for each row."""
    model = compiled(gqa_folder, batch_size=ROWS, sequence_length=8, max_context_length=4)

    def drawn(params: Sequence[Any], calls: int = 4, slots: Any = None) -> Any:
        per_row = torch.tensor(params, dtype=torch.float32).expand(ROWS, 3)
        torch.manual_seed(7)
        return torch.cat(
            [
                model.forward(
                    input_ids=torch.full((ROWS, 1), TOKEN),
                    position_ids=torch.zeros((ROWS, 1), dtype=torch.int64),
                    seq_ids=torch.arange(ROWS) if slots is None else slots,
                    sampling_params=per_row,
                )
                for _ in range(calls)
            ]
        )

    return drawn


@pytest.fixture(scope="module")
def logits(reference: Callable[[Path], Any], gqa_folder: Path) -> Any:
    """float32[320]: what every row draws from."""
    with torch.no_grad():
        return reference(gqa_folder)(torch.tensor([[TOKEN]])).logits[0, -1]


def assert_drawn_from(tokens: Any, probabilities: Any) -> None:
    """Pearson's chi-squared over the tokens expected five times and more, and one bin of all the others."""
    assert len(tokens) >= 2048
    counts = torch.bincount(tokens, minlength=len(probabilities)).double()
    expected = probabilities.double() * len(tokens)
    assert counts[expected == 0].sum() == 0
    often = expected >= 5
    counts, expected = (torch.cat([x[often], x[~often].sum()[None]]) for x in (counts, expected))
    freedom = len(counts) - 1
    assert freedom >= 1
    chi_squared = ((counts - expected).square() / expected.clamp(min=1)).sum()
    assert chi_squared <= freedom + 5 * (2 * freedom) ** 0.5


def softmax_of(logits: Any, top_k: int, temperature: float) -> Any:
    top = logits.topk(top_k)
    return torch.zeros_like(logits).scatter(0, top.indices, (top.values / temperature).softmax(-1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [3, MAX_TOPK])
def test_draws_follow_the_softmax_over_the_top_k(draw: Draw, logits: Any, top_k: int, temperature: float) -> None:
    assert_drawn_from(draw((top_k, 1.0, temperature), calls=8), softmax_of(logits, top_k, temperature))


def test_another_temperature_would_have_been_noticed(draw: Draw, logits: Any) -> None:
    with pytest.raises(AssertionError, match="<= "):
        assert_drawn_from(draw((MAX_TOPK, 1.0, 1.0)), softmax_of(logits, MAX_TOPK, 1.2))


def test_a_seed_gives_the_draws_again(draw: Draw) -> None:
    assert draw((MAX_TOPK, 1.0, 1.0), calls=1).tolist() == draw((MAX_TOPK, 1.0, 1.0), calls=1).tolist()


def test_top_k_minus_1_draws_evenly_from_the_256_best(draw: Draw, logits: Any) -> None:
    # Upstream's validation takes -1 for "no top-k"; its mask, "rank >= -1", then covers every token alike.
    even = torch.zeros_like(logits).scatter(0, logits.topk(MAX_TOPK).indices, 1 / MAX_TOPK)
    assert softmax_of(logits, MAX_TOPK, 1.0).max() > 10 / MAX_TOPK
    assert_drawn_from(draw((-1, 1.0, 1.0), calls=20), even)


@pytest.mark.parametrize("top_p", [0.5, 0.7, 0.9])
def test_top_p_drops_the_token_that_crosses_the_threshold_which_transformers_keeps(
    draw: Draw, logits: Any, top_p: float
) -> None:
    from transformers import TopPLogitsWarper

    ranked = logits.topk(MAX_TOPK)
    cumulated = ranked.values.softmax(-1).cumsum(0)
    kept = max(1, int((cumulated <= top_p).sum()))
    kept_by_transformers = int(TopPLogitsWarper(top_p)(None, ranked.values[None]).isfinite().sum())
    assert kept_by_transformers == kept + 1
    assert_drawn_from(draw((MAX_TOPK, top_p, 1.0)), softmax_of(logits, kept, 1.0))


def test_top_p_below_the_best_tokens_probability_is_greedy(draw: Draw, logits: Any) -> None:
    assert logits.softmax(-1).max() > 0.01
    assert set(draw((MAX_TOPK, 0.01, 1.0)).tolist()) == {int(logits.argmax())}


def test_a_temperature_of_1000_draws_tokens_beyond_top_k(draw: Draw, logits: Any) -> None:
    # Tokens beyond top_k get the logit -3000, which is then divided by the temperature.
    ranked = logits.topk(MAX_TOPK)
    values = torch.cat([ranked.values[:5], torch.full((MAX_TOPK - 5,), -3000.0)])
    leaking = torch.zeros_like(logits).scatter(0, ranked.indices, (values / 1000).softmax(-1))
    assert leaking[ranked.indices[5:]].sum() > 0.6
    assert_drawn_from(draw((5, 1.0, 1000.0), calls=20), leaking)
    assert_drawn_from(draw((5, 1.0, 100.0)), softmax_of(logits, 5, 100.0))


def test_top_p_at_a_low_temperature_beside_another_row_draws_what_it_excludes(optimum_neuron: None) -> None:
    # Tokens beyond top_p get the logit -3000 after the division, and -5 / 0.001 is less than that. Alone, such a row is
    # right: top_p is raised to the smallest of the best tokens' probabilities, over all rows of the call, here 1.
    from optimum.neuron.models.inference.backend.config import NxDNeuronConfig
    from optimum.neuron.models.inference.backend.modules.generation.sampling import Sampler

    sample = Sampler(NxDNeuronConfig(max_topk=8))
    logits = torch.arange(-5.0, -13, -1).repeat(2049, 1)
    cold = torch.tensor([[8, 0.9, 0.001]]).repeat(2049, 1)
    one_warm = torch.cat([cold[:-1], torch.tensor([[8, 0.9, 1.0]])])
    assert set(sample(logits, cold)[:-1].tolist()) == {0}
    assert set(sample(logits, one_warm)[:-1].tolist()) == {1, 2, 3, 4, 5, 6, 7}
    assert set(sample(logits + 10, one_warm)[:-1].tolist()) == {0}


def test_few_tokens_lose_the_least_likely_where_their_probabilities_add_up_to_more_than_1(optimum_neuron: None) -> None:
    # The compiled graph always cuts to top_p, and 1.0 cuts what rounding lifts above it.
    from optimum.neuron.models.inference.backend.config import NxDNeuronConfig
    from optimum.neuron.models.inference.backend.modules.generation.sampling import Sampler

    sample = Sampler(NxDNeuronConfig(max_topk=8))
    generator = torch.Generator().manual_seed(1)
    lost = 0
    for _ in range(200):
        logits = torch.randn(8, generator=generator)
        # Over all eight, as there: how a sum is rounded depends on its length, and on the CPU.
        few = logits.topk(8).values.index_fill(0, torch.arange(3, 8), -torch.inf)
        above = bool((few.softmax(-1).cumsum(0) > 1).any())
        rows = torch.tensor([[3, 1.0, 1.0]] * 512 + [[8, 0.5, 1.0]])
        drawn = set(sample(logits.repeat(513, 1), rows)[:-1].tolist())
        assert drawn == set(logits.topk(2 if above else 3).indices.tolist())
        lost += above
    assert 4 <= lost <= 20, "of 200: about one in twenty"


def test_every_row_is_sampled_with_its_own_parameters_in_any_order_of_slots(draw: Draw, logits: Any) -> None:
    best = int(logits.argmax())
    rows = [(1, 1.0, 1.0), (MAX_TOPK, 1.0, 1.0), (2, 1.0, 50.0), (MAX_TOPK, 0.01, 1.0)] * (ROWS // 4)
    for slots in (None, torch.randperm(ROWS, generator=torch.Generator().manual_seed(3))):
        tokens = draw(rows, calls=16, slots=slots).view(-1, 4)
        assert set(tokens[:, 0].tolist()) == {best}
        assert set(tokens[:, 3].tolist()) == {best}
        assert set(tokens[:, 2].tolist()) == set(logits.topk(2).indices.tolist())
        assert_drawn_from(tokens[:, 1], softmax_of(logits, MAX_TOPK, 1.0))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ((0, 1.0, 1.0), "top-k must be -1 or greater than 0 but less than or equal to 256"),
        ((257, 1.0, 1.0), "top-k must be -1 or greater than 0 but less than or equal to 256"),
        ((1.5, 1.0, 1.0), "should be able to be represented as integer values"),
        ((1, 0.0, 1.0), r"top-p must be in the range \(0.0, 1.0\]"),
        ((1, 1.0, 0.0), "Temperature must be strictly greater than 0.0"),
    ],
)
def test_parameters_outside_their_ranges_are_refused(draw: Draw, params: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(params, calls=1)
