"""What a request asks of the sampler is what the graph, or the host beside it, draws.

Method: many draws of one text's next token through the backend, against softmax of transformers' logits for the same
text, cut as docs/wire.md says the device cuts; chi-squared, limit mean plus five standard deviations. The second token
is looked at: it comes from a decode step, in which every row has parameters of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.backends import device_sampling
from server.backends.base import Sampling
from tests.neuron_contract.conftest import Compiled
from tests.neuron_contract.test_upstream_sampling import MAX_TOPK, assert_drawn_from, softmax_of

torch = pytest.importorskip("torch")

PROMPT = [17, 260, 31]
SLOTS = 128
ROUNDS = 64
#: Neighbours in the same step; a row that took another's parameters would show.
KINDS = (
    Sampling(),
    Sampling(do_sample=True),
    Sampling(do_sample=True, top_k=3, temperature=2.0),
    Sampling(do_sample=True, top_p=0.7),
)


@pytest.mark.parametrize("on_device", [True, False], ids=["device", "host"])
def test_decode_steps_draw_each_row_with_its_own_parameters(
    on_device: bool, compiled: Compiled, reference: Callable[[Path], Any], gqa_folder: Path
):
    from server.backends.neuron import NeuronBackend

    shape = {"batch_size": SLOTS, "sequence_length": 8, "max_context_length": 4}
    backend = NeuronBackend(compiled(gqa_folder, **shape, on_device_sampling=on_device), eos=())
    torch.manual_seed(11)
    for slot in range(SLOTS):  # the seed is for the host: the device has none
        backend.prefill(slot, PROMPT, replace(KINDS[slot % len(KINDS)], seed=slot))
    drawn: list[list[int]] = [[] for _ in KINDS]
    for _ in range(ROUNDS):
        for slot in range(SLOTS):  # every round decodes the prompt's last token again, at its own place
            row = backend._rows[slot]
            row.token_id, row.position = PROMPT[-1], len(PROMPT) - 1
        for slot, step in backend.decode().items():
            assert step.token_id < 320
            drawn[slot % len(KINDS)].append(step.token_id)
    with torch.no_grad():
        logits = reference(gqa_folder)(torch.tensor([PROMPT])).logits[0, -1]
    greedy, free, few, nucleus = drawn
    assert {len(tokens) for tokens in drawn} == {2048}
    assert set(greedy) == {int(logits.argmax())}
    cumulated = logits.softmax(-1).sort(descending=True).values.cumsum(0)
    kept = max(1, int((cumulated <= 0.7).sum())) + (not on_device)  # transformers keeps the token that crosses
    # On the device the least of few may be lost to rounding: see test_upstream_sampling.py.
    assert len(set(few)) in ((2, 3) if on_device else (3,))
    for tokens, probabilities in (
        (free, softmax_of(logits, MAX_TOPK if on_device else 320, 1.0)),
        (few, softmax_of(logits, len(set(few)), 2.0)),
        (nucleus, softmax_of(logits, kept, 1.0)),
    ):
        assert_drawn_from(torch.tensor(tokens), probabilities)


def test_the_parameters_of_a_row():
    assert device_sampling.parameters(Sampling(temperature=0.5), 256) == (1.0, 1.0, 1.0), "nothing is drawn"
    assert device_sampling.parameters(Sampling(do_sample=True), 256) == (256.0, 1.0, 1.0), "never upstream's -1"
    assert device_sampling.parameters(Sampling(do_sample=True, top_k=5, temperature=0.5), 256) == (5.0, 1.0, 0.5)


def test_the_smallest_top_p_is_one_that_upstream_takes(optimum_neuron: None):
    from optimum.neuron.models.inference.backend.modules.generation.sampling import validate_sampling_params

    row = device_sampling.parameters(Sampling(do_sample=True, top_p=1e-300), 256)
    validate_sampling_params(torch.tensor([row], dtype=torch.float32), 256)


def test_the_ranges_are_safe_for_logits_down_to_minus_30(optimum_neuron: None):
    """At both ends of the range, upstream's own sampler never draws what top_k and top_p cut off."""
    from optimum.neuron.models.inference.backend.config import NxDNeuronConfig
    from optimum.neuron.models.inference.backend.modules.generation.sampling import Sampler

    sample = Sampler(NxDNeuronConfig(max_topk=8))
    logits = torch.arange(-29.5, -33.5, -0.5).repeat(2048, 1)
    coldest, hottest = device_sampling.TEMPERATURES
    beside = torch.tensor([[8, 1.0, 1.0]])
    for row, allowed in (((8, 0.9, coldest), {0}), ((2, 1.0, hottest), {0, 1})):
        drawn = sample(logits, torch.cat([torch.tensor([row]).repeat(2047, 1), beside]))
        assert set(drawn[:-1].tolist()) == allowed


def test_the_host_repeats_a_text_with_its_seed(compiled: Compiled, gqa_folder: Path):
    from server.backends.neuron import NeuronBackend

    backend = NeuronBackend(compiled(gqa_folder, on_device_sampling=False), eos=())

    def text(slot: int, seed: int) -> list[int]:
        tokens = [backend.prefill(slot, PROMPT, Sampling(do_sample=True, seed=seed)).token_id]
        tokens += [backend.decode()[slot].token_id for _ in range(8)]
        backend.release(slot)
        return tokens

    assert text(0, 5) == text(3, 5) != text(0, 6)


def test_on_the_host_penalties_count_prompt_and_text_as_generate_does(
    compiled: Compiled, reference: Callable[[Path], Any], gqa_folder: Path
):
    from server.backends.neuron import NeuronBackend

    def generated(prompt: list[int], **rules: Any) -> list[int]:
        ids = torch.tensor([prompt])
        plainly = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 21}
        text = reference(gqa_folder).generate(ids, attention_mask=torch.ones_like(ids), **plainly, **rules)
        return text[0, len(prompt) :].tolist()

    backend = NeuronBackend(compiled(gqa_folder, on_device_sampling=False), eos=[1], suppressed=[242])
    prompt = [*PROMPT, generated(PROMPT)[0], generated([*PROMPT, generated(PROMPT)[0]])[0]]
    prompt[0] = generated(prompt)[0]  # what would come next stands in the prompt already
    expected = generated(prompt, repetition_penalty=1.8, suppress_tokens=[242, 1])
    assert expected != generated(prompt, suppress_tokens=[242, 1])
    backend.prefill(0, [5, 6], Sampling())  # a neighbour with other rules
    tokens = [backend.prefill(2, prompt, Sampling(repetition_penalty=1.8, ignore_eos=True)).token_id]
    tokens += [backend.decode()[2].token_id for _ in range(20)]
    assert tokens == expected


def test_a_first_token_of_chunks_is_drawn_on_the_host_as_the_device_would(
    reference: Callable[[Path], Any], gqa_folder: Path
):
    from server.backends.neuron import NeuronBackend
    from tests.neuron_contract.chunked import ChunkedModel

    backend = NeuronBackend(ChunkedModel(gqa_folder, 4, length=64, chunk=8, on_device_sampling=True), eos=())
    steps = []
    for seed in range(2048):
        sampling = Sampling(do_sample=True, temperature=1.5, seed=seed)
        steps.append(backend.prefill(0, PROMPT, sampling))
        backend.release(0)
    assert {step.score for step in steps} == {None}
    with torch.no_grad():
        logits = reference(gqa_folder)(torch.tensor([PROMPT])).logits[0, -1]
    assert_drawn_from(torch.tensor([step.token_id for step in steps]), softmax_of(logits, MAX_TOPK, 1.5))
