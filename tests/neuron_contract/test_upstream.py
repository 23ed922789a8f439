"""What optimum-neuron itself does with a compiled Llama, in fp32 on one CPU rank, without any code of ours around it.

Method: its real classes and graph code (see `compiled.py`), compared with transformers' own model of the same weights.
These tests fail when upstream changes, so that the server's defences are looked at again. They prove nothing of the
Neuron compiler, of half precision or of more than one rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.neuron_contract.conftest import Compiled, Right

torch = pytest.importorskip("torch")
GREEDY = (1, 1.0, 1.0)
PROMPTS = ([17, 260, 31, 8, 99, 140, 141, 3, 77], [200, 5, 64], [301, 19, 19, 254, 88, 12], [45, 46, 47, 48, 290])


def prefill(model: Any, slot: int, prompt: Sequence[int]) -> int:
    token = model.forward(
        input_ids=torch.tensor([list(prompt)]),
        position_ids=torch.arange(len(prompt))[None],
        seq_ids=torch.tensor([slot]),
        sampling_params=torch.tensor([GREEDY]),
    )
    return int(token[0])


def decode(model: Any, tokens: dict[int, int], positions: dict[int, int]) -> dict[int, int]:
    """One step of the given slots, in the given order: slot → token in, slot → token out."""
    slots = list(tokens)
    new = model.forward(
        input_ids=torch.tensor([[tokens[slot]] for slot in slots]),
        position_ids=torch.tensor([[positions[slot]] for slot in slots]),
        seq_ids=torch.tensor(slots),
        sampling_params=torch.tensor([GREEDY] * len(slots)),
    )
    assert new.shape == (len(slots),)
    return dict(zip(slots, new.tolist(), strict=True))


def started(model: Any) -> tuple[dict[int, int], dict[int, int]]:
    """Every prompt in the slot of its place: the first tokens, and the positions where they go."""
    tokens = {slot: prefill(model, slot, prompt) for slot, prompt in enumerate(PROMPTS)}
    return tokens, {slot: len(prompt) for slot, prompt in enumerate(PROMPTS)}


def changed(before: list[Any], after: list[Any]) -> set[tuple[int, int]]:
    """(slot, position) of every KV entry that differs, in whatever layer and head."""
    return {
        (int(slot), int(position))
        for old, new in zip(before, after, strict=True)
        for slot, _, position, _ in (old != new).nonzero()
    }


@pytest.mark.parametrize("sampling_on_device", [True, False])
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("kind", ["gqa", "mha"])
def test_generate_equals_transformers(
    request: pytest.FixtureRequest,
    compiled: Compiled,
    right: Right,
    kind: str,
    rows: int,
    sampling_on_device: bool,
) -> None:
    folder = request.getfixturevalue(f"{kind}_folder")
    model = compiled(folder, batch_size=rows, on_device_sampling=sampling_on_device)
    longest = max(map(len, PROMPTS[:rows]))
    ids = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in PROMPTS[:rows]])
    mask = torch.tensor([[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in PROMPTS[:rows]])
    text = model.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False, eos_token_id=-1, pad_token_id=0)
    expected = [right(folder, prompt, 20) for prompt in PROMPTS[:rows]]
    assert all(len(set(tokens)) > 8 for tokens in expected)
    assert text[:, longest:].tolist() == expected


def test_slots_in_any_order_decode_as_if_alone(compiled: Compiled, right: Right, gqa_folder: Path) -> None:
    model = compiled(gqa_folder)
    tokens, positions = started(model)
    text = {slot: [token] for slot, token in tokens.items()}
    for order in ([2, 0, 3, 1], [3, 2, 1, 0], [0, 1, 2, 3], [1, 3, 0, 2]):
        tokens = decode(model, {slot: tokens[slot] for slot in order}, positions)
        for slot, token in tokens.items():
            text[slot].append(token)
            positions[slot] += 1
    assert text == {slot: right(gqa_folder, prompt, 5) for slot, prompt in enumerate(PROMPTS)}


def test_the_graph_is_given_its_exact_shapes_and_rows_sorted_by_slot(compiled: Compiled, gqa_folder: Path) -> None:
    from tests.neuron_contract.compiled import boundary

    model = compiled(gqa_folder)
    prefill(model, 2, PROMPTS[1])
    decode(model, {3: 33, 1: 11}, {3: 7, 1: 5})
    first, second = boundary(model).calls
    assert (first.tag, second.tag) == ("context_encoding", "token_generation")
    assert first.input_ids.tolist() == [PROMPTS[1] + [0] * 29]
    assert first.position_ids.tolist() == [[0, 1, 2] + [1] * 29]
    assert first.seq_ids.tolist() == [2]
    assert second.input_ids.tolist() == [[33], [11], [33], [33]]  # row 0 of the call, slot 3's, stands in for 0 and 2
    assert second.position_ids.tolist() == [[7], [5], [7], [7]]
    assert second.seq_ids.tolist() == [0, 1, 2, 3]
    assert second.sampling_params.tolist() == [list(GREEDY)] * 4
    integers = [
        tensor.dtype for call in (first, second) for tensor in (call.input_ids, call.position_ids, call.seq_ids)
    ]
    assert set(integers) == {torch.int32}


def test_without_sampling_on_device_the_logits_of_the_last_token_come_back(
    compiled: Compiled, reference: Callable[[Path], Any], gqa_folder: Path
) -> None:
    model = compiled(gqa_folder, on_device_sampling=False)
    ids = torch.tensor([PROMPTS[0]])
    logits = model.forward(
        input_ids=ids,
        position_ids=torch.arange(ids.shape[1])[None],
        seq_ids=torch.tensor([1]),
        sampling_params=torch.tensor([GREEDY]),
    )
    assert logits.shape == (1, 1, 320)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits[0, 0], reference(gqa_folder)(ids).logits[0, -1], atol=1e-3, rtol=1e-3)


def test_a_step_writes_one_position_of_every_slot_and_a_prefill_the_slots_own_row(
    compiled: Compiled, gqa_folder: Path
) -> None:
    from tests.neuron_contract.compiled import boundary

    model = compiled(gqa_folder)
    tokens, positions = started(model)
    kv = boundary(model).kv
    before = [tensor.clone() for tensor in kv]
    decode(model, tokens, positions)
    assert changed(before, kv) == set(positions.items())
    before = [tensor.clone() for tensor in kv]
    prefill(model, 1, [9, 8, 7])
    assert changed(before, kv) == {(1, position) for position in range(32)}  # up to max_context_length, not beyond


def test_hazard_decoding_some_slots_corrupts_those_left_out(compiled: Compiled, right: Right, gqa_folder: Path) -> None:
    from tests.neuron_contract.compiled import boundary

    model = compiled(gqa_folder)
    tokens, positions = started(model)
    before = [tensor.clone() for tensor in boundary(model).kv]
    left_out = {slot: tokens[slot] for slot in (0, 2, 3)}
    short = positions[1]
    decode(model, {1: tokens[1]}, positions)
    assert changed(before, boundary(model).kv) == {(slot, short) for slot in range(4)}
    assert all(short < positions[slot] for slot in left_out)
    wrong = {slot: [token] for slot, token in left_out.items()}
    for _ in range(8):
        left_out = decode(model, left_out, positions)
        for slot, token in left_out.items():
            wrong[slot].append(token)
            positions[slot] += 1
    expected = {slot: right(gqa_folder, PROMPTS[slot], 9) for slot in wrong}
    assert [slot for slot in wrong if wrong[slot] != expected[slot]] == [0, 2, 3]


def test_hazard_a_prompt_of_one_token_corrupts_position_0_of_the_other_slots(
    compiled: Compiled, right: Right, gqa_folder: Path
) -> None:
    from tests.neuron_contract.compiled import boundary

    model = compiled(gqa_folder)
    started(model)
    before = [tensor.clone() for tensor in boundary(model).kv]
    token = prefill(model, 3, [123])
    assert boundary(model).calls[-1].tag == "token_generation"
    assert [token] == right(gqa_folder, [123], 1)
    assert changed(before, boundary(model).kv) == {(slot, 0) for slot in range(4)}


def test_a_prompt_of_one_token_padded_with_all_positions_0_is_right_and_alone(
    compiled: Compiled, right: Right, gqa_folder: Path
) -> None:
    from tests.neuron_contract.compiled import boundary

    model = compiled(gqa_folder)
    started(model)
    before = [tensor.clone() for tensor in boundary(model).kv]
    token = model.forward(
        input_ids=torch.tensor([[123] + [0] * 31]),
        position_ids=torch.zeros((1, 32), dtype=torch.int64),
        seq_ids=torch.tensor([3]),
        sampling_params=torch.tensor([GREEDY]),
    )
    assert boundary(model).calls[-1].tag == "context_encoding"
    assert {slot for slot, _ in changed(before, boundary(model).kv)} == {3}
    text = [int(token[0])]
    for position in range(1, 6):
        text.append(decode(model, {3: text[-1]}, {3: position})[3])
    assert text == right(gqa_folder, [123], 6)


def test_a_prompt_of_two_tokens_is_right_though_its_padding_has_its_last_position(
    compiled: Compiled, right: Right, gqa_folder: Path
) -> None:
    # The graph takes the first of equal largest positions: torch.max promises that, the compiler is trusted.
    expected = right(gqa_folder, [123, 45], 1)
    assert [prefill(compiled(gqa_folder), 0, [123, 45])] == expected
    assert expected != right(gqa_folder, [123, 45] + [0] * 30, 1)


def test_hazard_a_prompt_longer_than_the_prefill_graph_loses_its_end(
    compiled: Compiled, right: Right, gqa_folder: Path
) -> None:
    from tests.neuron_contract.compiled import boundary

    model = compiled(gqa_folder)
    prompt = [(7 * i * i + 3) % 320 for i in range(40)]
    token = prefill(model, 0, prompt)
    assert boundary(model).calls[-1].input_ids.tolist() == [prompt[:32]]
    assert [token] == right(gqa_folder, prompt[:32], 1) != right(gqa_folder, prompt, 1)


def test_hazard_a_position_past_the_sequence_length_reaches_the_graph(compiled: Compiled, gqa_folder: Path) -> None:
    from tests.neuron_contract.compiled import boundary

    model = compiled(gqa_folder)
    with pytest.raises(RuntimeError, match="index 64 is out of bounds for dimension 2 with size 64"):
        decode(model, dict.fromkeys(range(4), 9), {0: 3, 1: 64, 2: 3, 3: 3})
    assert boundary(model).calls[-1].position_ids.flatten().tolist() == [3, 64, 3, 3]


def test_hazard_a_slot_past_the_last_one_overwrites_the_last_one(compiled: Compiled, gqa_folder: Path) -> None:
    from tests.neuron_contract.compiled import boundary

    model = compiled(gqa_folder)
    before = [tensor.clone() for tensor in boundary(model).kv]
    prefill(model, 9, PROMPTS[0])
    assert {slot for slot, _ in changed(before, boundary(model).kv)} == {3}


def test_a_prompt_that_begins_after_position_0_meets_no_graph(compiled: Compiled, gqa_folder: Path) -> None:
    model = compiled(gqa_folder)
    with pytest.raises(KeyError, match="no graph was compiled for"):
        model.forward(
            input_ids=torch.tensor([[7, 8, 9]]),
            position_ids=torch.tensor([[4, 5, 6]]),
            seq_ids=torch.tensor([0]),
            sampling_params=torch.tensor([GREEDY]),
        )
