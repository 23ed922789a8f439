"""What stands in for a Neuron device is as strict as one: exact shapes, no branches, nothing invented.

Method: the stand-ins alone, or under a model whose right answer is known from the other tests.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.neuron_contract.conftest import Compiled

torch = pytest.importorskip("torch")


def inputs(rows: int, length: int) -> list[Any]:
    integers = (torch.zeros(shape, dtype=torch.int32) for shape in ((rows, length), (rows, length), (rows,)))
    return [*integers, torch.ones((rows, 3))]


def test_the_stand_ins_are_found_only_under_the_absent_roots(optimum_neuron: None) -> None:
    from optimum.neuron.utils.import_utils import is_neuronx_available
    from transformers.utils import is_torch_xla_available

    from tests.neuron_contract.absent import ROOTS, StandIn

    stand_ins = {name for name, module in list(sys.modules.items()) if type(module) is StandIn}
    assert len(stand_ins) > 20
    assert {name.split(".")[0] for name in stand_ins} <= set(ROOTS)
    assert not is_torch_xla_available()
    assert not is_neuronx_available()
    with pytest.raises(ModuleNotFoundError):
        __import__("neuronx_distributed_inference")


def test_what_no_llama_needs_can_be_named_but_not_used(optimum_neuron: None) -> None:
    from torch_neuronx.xla_impl.ops import TopK

    with pytest.raises(NotImplementedError, match=r"torch_neuronx\.xla_impl\.ops\.TopK needs a Neuron device"):
        TopK(3)


def test_only_the_compiled_shapes_and_dtypes_are_run(compiled: Compiled, gqa_folder: Path) -> None:
    from tests.neuron_contract.compiled import boundary

    model = boundary(compiled(gqa_folder))
    assert {graph.tag for graph in model.graphs.values()} == {"context_encoding", "token_generation"}
    assert model(*inputs(1, 32)).shape == (1,)
    assert model(*inputs(4, 1)).shape == (4,)
    long = inputs(4, 1)
    long[0] = long[0].long()
    for wrong in (inputs(1, 31), inputs(1, 1), inputs(4, 32), inputs(3, 1), long):
        with pytest.raises(KeyError, match="no graph was compiled for"):
            model(*wrong)
    assert len(model.calls) == 2


def test_a_graph_goes_the_way_it_was_traced_whatever_its_inputs_say() -> None:
    from tests.neuron_contract.compiled import Recorded, Replayed

    def branching(x: Any) -> Any:
        return x + 1 if torch.any(x > 0) else x - 1

    with Recorded() as traced:
        branching(torch.tensor([5.0]))
    assert traced.taken == [True]
    with Replayed(traced.taken):
        assert branching(torch.tensor([-5.0])).item() == -4
    assert branching(torch.tensor([-5.0])).item() == -6


def test_temperature_and_top_p_are_in_every_graph(compiled: Compiled, gqa_folder: Path) -> None:
    # Upstream's sampler asks `if torch.any(temperature != 1.0)`; with the example inputs, zeros, that is yes.
    from tests.neuron_contract.compiled import boundary

    graphs = boundary(compiled(gqa_folder)).graphs.values()
    assert [graph.branches.taken for graph in graphs] == [[True, True]] * 2


def test_a_compiled_model_has_no_weights_until_they_are_loaded_and_keeps_none_in_its_file(
    compiled: Compiled, gqa_folder: Path
) -> None:
    from tests.neuron_contract.compiled import boundary

    model = boundary(compiled(gqa_folder))
    token = model(*inputs(1, 32)).tolist()
    shard = dict(next(iter(model.graphs.values())).module.named_parameters())
    file = pickle.dumps(model)
    assert len(file) < 20_000 < sum(tensor.nbytes for tensor in shard.values())
    again = pickle.loads(file)
    with pytest.raises(RuntimeError, match="has no weights yet"):
        again(*inputs(1, 32))
    for _ in range(2):
        again.initialize([shard], torch.tensor([0]))
        assert not any(tensor.any() for tensor in again.kv)
        assert again(*inputs(1, 32)).tolist() == token
        assert all(tensor.any() for tensor in again.kv)


def test_more_than_one_rank_is_refused(compiled: Compiled, gqa_folder: Path) -> None:
    with pytest.raises(NotImplementedError, match="2 ranks need Neuron devices"):
        compiled(gqa_folder, tp_degree=2)


def test_building_a_model_leaves_the_seed_alone(compiled: Compiled, gqa_folder: Path) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    compiled(gqa_folder)
    assert torch.rand(3).equal(expected)


def test_an_update_past_the_end_of_a_tensor_is_moved_back_as_xla_does() -> None:
    from tests.neuron_contract.one_rank import xla_hlo_call

    update = xla_hlo_call(lambda t, u, *at: t.dtype[t.sizes].DynamicUpdateSlice(t, u, *at))
    zeros, ones = torch.zeros(4, 3), torch.ones(1, 2)
    moved = update(zeros, ones, torch.tensor(9), torch.tensor(2))
    assert moved.nonzero().tolist() == [[3, 1], [3, 2]]
    assert not zeros.any()
