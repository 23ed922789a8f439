"""The neuron backend gives transformers' tokens through optimum-neuron's real classes, whoever sits in other slots.

Method: `NeuronBackend` over models compiled here (see `compiled.py`), greedy, against transformers' model of the same
weights: equal token for token. What reaches the graph is looked at, too. Prompts in chunks: `chunked.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from server.backends.base import Sampling
from server.errors import ModelError
from tests.neuron_contract.conftest import Compiled, Right

GREEDY = Sampling()


@pytest.fixture
def backend_of() -> Any:
    """backend_of(model) is the backend over it; imported late, since torch and optimum-neuron may be absent."""
    from server.backends.neuron import NeuronBackend

    return lambda model, eos=(), suppressed=(): NeuronBackend(model, eos, suppressed)


@dataclass
class Text:
    prompt: list[int]
    wanted: int
    tokens: list[int] = field(default_factory=list)


def texts(count: int, longest_prompt: int, length: int) -> list[Text]:
    """Texts of every kind in turn: ordinary, of one token, of exactly the longest prompt, up to exactly the length."""
    made = []
    for number in range(count):
        size = (5 + number % 7, 1, longest_prompt, 2)[number % 4]
        prompt = [(31 * number + 7 * place * place + 3) % 320 for place in range(size)]
        made.append(Text(prompt, length - size if number % 8 == 2 else 3 + 2 * number % 11))
    return made


def run(backend: Any, queue: Sequence[Text], slots_from_the_top: bool) -> int:
    """First come, first served, at most one prefill (or chunk of one) between two decode steps. Returns the most texts
    that were live at once. Slots are taken from the lowest or from the highest on.
    """
    waiting, live, prefilling, most = deque(queue), {}, None, 0
    free = list(range(backend.limits.slots))
    while waiting or live or prefilling:
        if prefilling is None and waiting and free:
            prefilling = (free.pop(-1 if slots_from_the_top else 0), waiting.popleft())
        if prefilling is not None:
            slot, text = prefilling
            step = backend.prefill(slot, text.prompt, GREEDY)
            if step is not None:
                text.tokens.append(step.token_id)
                live[slot], prefilling = text, None
        most = max(most, len(live))
        for slot in finished(live):
            backend.release(slot)
            free.append(slot)
        if live:
            for slot, step in backend.decode().items():
                live[slot].tokens.append(step.token_id)
        for slot in finished(live):
            backend.release(slot)
            free.append(slot)
    return most


def finished(live: dict[int, Text]) -> Iterator[int]:
    for slot, text in list(live.items()):
        if len(text.tokens) == text.wanted:
            del live[slot]
            yield slot


@pytest.mark.parametrize("slots_from_the_top", [False, True], ids=["lowest-first", "highest-first"])
@pytest.mark.parametrize("on_device", [True, False], ids=["device", "host"])
@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("kind", ["gqa", "mha"])
def test_sixteen_texts_that_join_and_leave_equal_transformers_one_by_one(
    request: pytest.FixtureRequest,
    compiled: Compiled,
    backend_of: Any,
    right: Right,
    kind: str,
    slots: int,
    on_device: bool,
    slots_from_the_top: bool,
):
    folder: Path = request.getfixturevalue(f"{kind}_folder")
    backend = backend_of(compiled(folder, batch_size=slots, on_device_sampling=on_device))
    queue = texts(16, longest_prompt=32, length=64)
    assert {len(text.prompt) for text in queue} >= {1, 2, 32}
    assert any(len(text.prompt) + text.wanted == 64 for text in queue)
    assert run(backend, queue, slots_from_the_top) == slots
    assert [text.tokens for text in queue] == [right(folder, text.prompt, text.wanted) for text in queue]


@pytest.mark.parametrize("on_device", [True, False], ids=["device", "host"])
@pytest.mark.parametrize("verb", ["prefill", "decode"])
def test_what_a_failed_call_left_in_the_cache_reaches_no_later_text(
    monkeypatch: pytest.MonkeyPatch,
    compiled: Compiled,
    backend_of: Any,
    right: Right,
    gqa_folder: Path,
    verb: str,
    on_device: bool,
):
    from tests.neuron_contract.compiled import boundary

    model = compiled(gqa_folder, on_device_sampling=on_device)
    backend = backend_of(model)
    live = range(3) if verb == "prefill" else range(4)
    tokens = {slot: [backend.prefill(slot, [9, slot, 8], GREEDY).token_id] for slot in live}
    forward = model.forward

    def fails(**inputs: Any) -> Any:
        forward(**inputs)
        raise RuntimeError("the runtime says no")

    with monkeypatch.context() as failing:
        failing.setattr(model, "forward", fails)
        with pytest.raises(RuntimeError):
            backend.prefill(3, [9, 3, 8], GREEDY) if verb == "prefill" else backend.decode()
    lost = [3] if verb == "prefill" else list(live)
    for slot in lost:
        backend.release(slot)
        for tensor in boundary(model).kv:
            tensor[slot] = 1e3
    for _ in range(4):
        for slot, step in backend.decode().items():
            tokens[slot].append(step.token_id)
    for slot in set(live) - set(lost):  # a prompt's failure is not its neighbours'
        assert tokens[slot] == right(gqa_folder, [9, slot, 8], 5)
        backend.release(slot)
    queue = texts(8, longest_prompt=32, length=64)
    run(backend, queue, slots_from_the_top=True)
    assert [text.tokens for text in queue] == [right(gqa_folder, text.prompt, text.wanted) for text in queue]


def test_a_graph_call_has_all_rows_in_the_order_of_slots(compiled: Compiled, backend_of: Any, gqa_folder: Path):
    from tests.neuron_contract.compiled import boundary

    model = compiled(gqa_folder)
    backend = backend_of(model)
    warm = Sampling(do_sample=True, temperature=0.5, top_k=7, top_p=0.25)
    first = {slot: backend.prefill(slot, [9, slot, 8], sampling) for slot, sampling in ((3, GREEDY), (1, warm))}
    backend.decode()
    *prefills, step = boundary(model).calls
    assert [call.seq_ids.tolist() for call in prefills] == [[3], [1]]
    assert [call.sampling_params.tolist() for call in prefills] == [[[1, 1, 1]], [[7, 0.25, 0.5]]]
    assert step.seq_ids.tolist() == [0, 1, 2, 3]
    assert step.position_ids.tolist() == [[3]] * 4
    fed = step.input_ids.flatten().tolist()
    assert (fed[1], fed[3]) == (first[1].token_id, first[3].token_id)
    assert fed[0] == fed[2] == first[3].token_id, "rows without a text repeat one that has"
    assert step.sampling_params.tolist()[1] == [7, 0.25, 0.5]
    assert step.sampling_params.tolist()[3] == [1, 1, 1]


def test_a_prompt_of_one_token_touches_no_other_slot(compiled: Compiled, backend_of: Any, gqa_folder: Path):
    from tests.neuron_contract.compiled import boundary

    model = compiled(gqa_folder)
    backend = backend_of(model)
    for slot in (0, 1, 2):
        backend.prefill(slot, [7, 8, slot], GREEDY)
    before = [tensor[:3].clone() for tensor in boundary(model).kv]
    backend.prefill(3, [5], GREEDY)
    assert all(bool((old == new[:3]).all()) for old, new in zip(before, boundary(model).kv, strict=True))


@pytest.mark.parametrize("size", [0, 33, 64])
def test_a_prompt_that_does_not_fit_is_refused_rather_than_cropped(
    size: int, compiled: Compiled, backend_of: Any, gqa_folder: Path
):
    backend = backend_of(compiled(gqa_folder))
    assert (backend.limits.max_input_tokens, backend.limits.max_total_tokens) == (32, 64)
    with pytest.raises(ValueError, match=f"a prompt of {size} tokens: the export takes 1 to 32"):
        backend.prefill(0, [1] * size, GREEDY)


def test_no_position_passes_the_compiled_length(compiled: Compiled, backend_of: Any, right: Right, gqa_folder: Path):
    from tests.neuron_contract.compiled import boundary

    model = compiled(gqa_folder, sequence_length=40)
    backend = backend_of(model)
    tokens = [backend.prefill(2, [5] * 32, GREEDY).token_id]
    tokens += [backend.decode()[2].token_id for _ in range(8)]
    assert tokens == right(gqa_folder, [5] * 32, 9), "the last of them stands at position 40, and needs no key"
    calls = len(boundary(model).calls)
    with pytest.raises(ValueError, match="a token at position 40: the export holds 40"):
        backend.decode()
    assert len(boundary(model).calls) == calls


def test_a_prefill_graph_as_long_as_the_sequence_leaves_room_for_one_token(
    compiled: Compiled, backend_of: Any, right: Right, gqa_folder: Path
):
    backend = backend_of(compiled(gqa_folder, sequence_length=32))
    assert backend.limits.max_input_tokens == 31
    assert backend.prefill(0, [5] * 31, GREEDY).token_id == right(gqa_folder, [5] * 31, 1)[0]


def test_without_a_text_a_step_does_nothing(compiled: Compiled, backend_of: Any, gqa_folder: Path):
    backend = backend_of(compiled(gqa_folder))
    assert backend.decode() == {}
    backend.prefill(0, [1, 2], GREEDY)
    backend.release(0)
    assert backend.decode() == {}


def test_it_tells_what_runs_the_model(compiled: Compiled, backend_of: Any, gqa_folder: Path):
    about = backend_of(compiled(gqa_folder)).about
    shape = {name: about[name] for name in ("batch_size", "sequence_length", "max_context_length")}
    assert shape == {"batch_size": 4, "sequence_length": 64, "max_context_length": 32}
    assert (about["name"], about["cores"], about["dtype"], about["target"]) == ("neuron", 1, "float32", "trn1")
    assert about["on_device_sampling"] is True
    assert about["versions"].keys() >= {"optimum-neuron", "torch"}


@pytest.mark.parametrize("slots", [1, 4])
def test_the_self_check_passes_and_leaves_the_slots_free(
    slots: int, compiled: Compiled, backend_of: Any, right: Right, gqa_folder: Path
):
    from server.backends.selfcheck import check

    backend = backend_of(compiled(gqa_folder, batch_size=slots))
    check(backend)
    assert backend.decode() == {}
    assert backend.prefill(0, [3, 4], GREEDY).token_id == right(gqa_folder, [3, 4], 1)[0]


@pytest.mark.parametrize("fault", ["position", "rows", "first"])
def test_the_self_check_finds_a_graph_that_goes_wrong(
    fault: str, compiled: Compiled, backend_of: Any, gqa_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    """Faults that a compiler could make: decode one position late, rows swapped, the last of equal positions picked."""
    import torch

    from server.backends.selfcheck import check
    from tests.neuron_contract.compiled import boundary

    model = compiled(gqa_folder)
    graph = boundary(model)
    forward = graph.forward

    def wrong(ids: Any, positions: Any, slots: Any, parameters: Any) -> Any:
        if ids.shape[1] > 1:
            if fault == "first" and positions.max() == 0:  # the picked one is the pad at the end
                ids = ids.flip(1)
            return forward(ids, positions, slots, parameters)
        if fault == "position":
            positions = positions + 1
        out = forward(ids, positions, slots, parameters)
        return out[torch.tensor([1, 0, 3, 2])] if fault == "rows" else out

    monkeypatch.setattr(graph, "forward", wrong)
    with pytest.raises(ModelError, match=r"prefill and decode disagree on (1\d|20) of 20 texts"):
        check(backend_of(model))


@pytest.fixture
def chunked(compiled: Compiled, gqa_folder: Path) -> Any:
    """chunked(slots, on_device) takes prompts in chunks of 8 tokens: upstream's own class where the installed version
    has it, else `ChunkedModel`.
    """
    from optimum.neuron.models.inference.backend.config import NxDNeuronConfig

    from tests.neuron_contract.chunked import ChunkedModel

    def model(slots: int, on_device: bool) -> Any:
        if hasattr(NxDNeuronConfig(), "prefill_chunk_size"):
            shape = {"sequence_length": 64, "max_context_length": 64, "prefill_chunk_size": 8}
            return compiled(gqa_folder, batch_size=slots, on_device_sampling=on_device, **shape)
        return ChunkedModel(gqa_folder, slots, length=64, chunk=8, on_device_sampling=on_device)

    return model


def test_a_few_texts_that_part_do_not_condemn_an_export(
    compiled: Compiled, backend_of: Any, gqa_folder: Path, caplog: pytest.LogCaptureFixture
):
    from server.backends.selfcheck import check

    backend = backend_of(compiled(gqa_folder))
    decode, wrong = backend.decode, iter([True, True])

    def off_by_one_at_first() -> Any:
        steps = decode()
        return (
            {slot: replace(step, token_id=step.token_id + 1) for slot, step in steps.items()}
            if next(wrong, 0)
            else steps
        )

    backend.decode = off_by_one_at_first
    with caplog.at_level("INFO"):
        check(backend)
    assert "prefill and decode agree on 16 of 20 texts" in caplog.text


@pytest.mark.parametrize("on_device", [True, False], ids=["device", "host"])
@pytest.mark.parametrize("slots", [1, 4])
def test_prompts_in_chunks_equal_transformers_while_others_decode_between_two_chunks(
    slots: int,
    on_device: bool,
    chunked: Any,
    backend_of: Any,
    right: Right,
    gqa_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    model = chunked(slots, on_device)
    whole, sizes = model.prefill_chunk, []
    monkeypatch.setattr(
        model, "prefill_chunk", lambda **given: (sizes.append(given["input_ids"].shape[1]), whole(**given))[1]
    )
    backend = backend_of(model)
    assert backend.limits.max_input_tokens == 63
    queue = texts(16, longest_prompt=33, length=64)
    assert run(backend, queue, slots_from_the_top=False) == slots
    assert [text.tokens for text in queue] == [right(gqa_folder, text.prompt, text.wanted) for text in queue]
    assert {8, 1} <= set(sizes), "33 tokens are four chunks of 8 and one of 1"


def test_a_prompt_that_is_given_up_between_two_chunks_leaves_its_slot_as_new(
    chunked: Any, backend_of: Any, right: Right, gqa_folder: Path
):
    backend = backend_of(chunked(4, on_device=True))
    assert backend.prefill(1, [6] * 20, GREEDY) is None
    backend.release(1)
    assert backend.prefill(1, [4, 2], GREEDY).token_id == right(gqa_folder, [4, 2], 1)[0]
