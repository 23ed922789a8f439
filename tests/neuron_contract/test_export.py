"""A model that optimum-neuron exported and saved loads again, and one that doesn't fit the machine is refused by name.

Method: upstream's `get_neuron_config`, `export`, `save_pretrained` and `from_pretrained`, with the names of
`machine.REPLACED` replaced and no others. Expected tokens are transformers' own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROMPT = [17, 260, 31, 8, 99, 140]


@pytest.fixture(scope="module")
def exported(gqa_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder exported for four slots, prompts up to 32 tokens of 64."""
    from tests.neuron_contract.machine import export, inferentia

    with inferentia():
        return export(gqa_folder, tmp_path_factory.mktemp("exported"), max_context_length=32)


def load(folder: Path) -> Any:
    from optimum.neuron import NeuronModelForCausalLM

    return NeuronModelForCausalLM.from_pretrained(str(folder))


def greedy(model: Any) -> list[int]:
    import torch

    ids = torch.tensor([PROMPT])
    text = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0)
    assert text.shape[1] == len(PROMPT) + 12
    return text[0].tolist()


def with_neuron_config(exported: Path, folder: Path, **changes: Any) -> Path:
    """A copy whose neuron_config.json says something else."""
    shutil.copytree(exported, folder, dirs_exist_ok=True)
    path = folder / "neuron_config.json"
    fields = json.loads(path.read_text())
    assert changes.keys() <= fields.keys()
    path.write_text(json.dumps(fields | changes))
    return folder


def test_the_files_of_an_export_have_no_tokenizer_and_no_generation_config(
    demo_folder: Path, tmp_path: Path, inferentia: None
) -> None:
    from tests.neuron_contract.machine import export

    source = {path.name for path in demo_folder.iterdir()}
    assert {"tokenizer.json", "generation_config.json"} <= source
    folder = export(demo_folder, tmp_path / "exported", batch_size=1, sequence_length=32)
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "checkpoint/weights/tp0_sharded_checkpoint.safetensors",
        "config.json",
        "model.pt",
        "neuron_config.json",
    ]


def test_a_loaded_export_says_what_transformers_says(
    exported: Path, gqa_folder: Path, reference: Callable[[Path], Any], inferentia: None
) -> None:
    model = load(exported)
    assert type(model).__name__ == "LlamaNeuronModelForCausalLM"
    assert greedy(model) == greedy(reference(gqa_folder))


def test_an_export_can_be_used_at_once(gqa_folder: Path, reference: Callable[[Path], Any], inferentia: None) -> None:
    from optimum.neuron import NeuronModelForCausalLM

    config = NeuronModelForCausalLM.get_neuron_config(
        str(gqa_folder), instance_type="inf2", batch_size=2, sequence_length=64, tensor_parallel_size=1
    )
    model = NeuronModelForCausalLM.export(str(gqa_folder), config, load_weights=True)
    assert greedy(model) == greedy(reference(gqa_folder))


def test_the_neuron_config_of_a_llama_is_what_the_server_counts_on(exported: Path, gqa_folder: Path) -> None:
    from optimum.neuron import NeuronModelForCausalLM

    fields = json.loads((exported / "neuron_config.json").read_text())
    expected = {
        "batch_size": 4,
        "max_batch_size": 4,
        "continuous_batching": True,
        "sequence_length": 64,
        "max_context_length": 32,
        "on_device_sampling": True,
        "max_topk": 256,
        "output_logits": False,
        "target": "trn1",
        "tp_degree": 1,
        "torch_dtype": "float32",
        "checkpoint_id": None,
    }
    assert {name: fields[name] for name in expected} == expected
    single = NeuronModelForCausalLM.get_neuron_config(
        str(gqa_folder), instance_type="inf2", batch_size=1, sequence_length=64, tensor_parallel_size=1
    )
    assert single.continuous_batching is False
    assert single.max_context_length == 64


def test_context_length_and_sampling_can_be_set_between_config_and_export(
    gqa_folder: Path, tmp_path: Path, reference: Callable[[Path], Any], inferentia: None
) -> None:
    import torch

    from tests.neuron_contract.compiled import boundary
    from tests.neuron_contract.machine import export

    folder = export(gqa_folder, tmp_path / "exported", max_context_length=16, on_device_sampling=False)
    model = load(folder)
    assert greedy(model) == greedy(reference(gqa_folder))
    assert {call.input_ids.shape for call in boundary(model).calls} == {(1, 16), (4, 1)}
    logits = model.forward(
        input_ids=torch.tensor([PROMPT]),
        position_ids=torch.arange(len(PROMPT))[None],
        seq_ids=torch.tensor([0]),
        sampling_params=torch.tensor([[1, 1.0, 1.0]]),
    )
    assert logits.shape == (1, 1, 320)


def test_another_version_of_optimum_neuron_is_refused(exported: Path, tmp_path: Path, inferentia: None) -> None:
    from optimum.neuron.version import __version__

    folder = with_neuron_config(exported, tmp_path, optimum_neuron_version="0.4.4")
    with pytest.raises(ValueError, match="This neuron configuration file was generated with") as refused:
        load(folder)
    assert str(refused.value) == (
        "This neuron configuration file was generated with optimum-neuron version 0.4.4, "
        f"but this version is {__version__}."
    )


def test_another_version_of_the_compiler_is_refused(exported: Path, tmp_path: Path, inferentia: None) -> None:
    from tests.neuron_contract.absent import COMPILER_VERSION

    folder = with_neuron_config(exported, tmp_path, neuronxcc_version="2.20")
    with pytest.raises(RuntimeError, match="This neuron configuration corresponds to a model exported") as refused:
        load(folder)
    assert str(refused.value) == (
        "This neuron configuration corresponds to a model exported using version 2.20 of the neuronxcc compiler, "
        f"but {COMPILER_VERSION} is installed."
    )


def test_an_export_for_another_instance_type_is_refused(exported: Path) -> None:
    from tests.neuron_contract.machine import inferentia

    with inferentia(instance_type="trn2"), pytest.raises(ValueError, match="The model was compiled") as refused:
        load(exported)
    assert str(refused.value) == (
        "The model was compiled for trn1 but the current instance type is trn2. Please use a compatible instance type."
    )


def test_an_export_for_more_cores_than_there_are_is_refused(exported: Path, tmp_path: Path) -> None:
    from tests.neuron_contract.machine import inferentia

    folder = with_neuron_config(exported, tmp_path, tp_degree=24)
    with inferentia(cores=2), pytest.raises(ValueError, match="The model requires") as refused:
        load(folder)
    assert str(refused.value) == (
        "The model requires at least 24 Neuron cores but only 2 are available. Please use a compatible instance type."
    )


def test_only_the_listed_names_are_replaced(optimum_neuron: None) -> None:
    import sys

    from tests.neuron_contract.machine import REPLACED, inferentia

    def names() -> dict[str, int]:
        modules = {name: module for name, module in sys.modules.items() if name.startswith("optimum.neuron")}
        return {f"{name}.{key}": id(value) for name, module in modules.items() for key, value in vars(module).items()}

    before = names()
    with inferentia():
        inside = names()
    assert len(before) > 1000
    assert {name for name in inside if inside[name] != before.get(name)} == set(REPLACED)
    assert names() == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("current_instance_type", "No Neuron device detected"),
        ("get_available_cores", "requires at least 1 Neuron cores but only 0 are available"),
        ("hub_neuronx_cache", "hub_neuronx_cache requires the `torch_neuronx` package"),
        ("get_neuron_device_memory", "Neuron sysfs not found"),
        ("torch", "'TracedModel' object has no attribute 'save'"),
    ],
)
def test_every_replaced_name_is_needed(gqa_folder: Path, tmp_path: Path, name: str, message: str) -> None:
    from tests.neuron_contract.machine import BACKEND, export, inferentia

    with inferentia(without=f"{BACKEND}.{name}"), pytest.raises(Exception, match=message):
        load(export(gqa_folder, tmp_path, batch_size=1, max_context_length=16))
