"""What optimum-neuron asks of its machine to export, save and load a model is answered as a two-core inf2 would.

`REPLACED` is the whole list of the names of optimum-neuron that these tests replace, and `inferentia` is the only place
that does it. Nothing of it is needed to trace, to run or to generate.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

BACKEND = "optimum.neuron.models.inference.backend.pretrained_model"
REPLACED = (
    f"{BACKEND}.current_instance_type",  # reads /sys/devices/virtual/dmi
    f"{BACKEND}.get_available_cores",  # counts /dev/neuron*
    f"{BACKEND}.hub_neuronx_cache",  # a cache of compiled files, of libneuronxla
    f"{BACKEND}.get_neuron_device_memory",  # reads /sys/devices/virtual/neuron_device
    f"{BACKEND}.torch",  # its jit.save and jit.load: the compiled model is a pickle here, no TorchScript
)


class TorchWithoutScript:
    """torch, but `jit.save` and `jit.load` write and read pickles of the CPU's compiled models."""

    jit = SimpleNamespace(
        save=lambda model, path: torch.save(model, path),
        load=lambda path: torch.load(path, weights_only=False),
    )

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextmanager
def inferentia(instance_type: str = "trn1", cores: int = 2, without: str = "") -> Iterator[None]:
    """Export, save and load work in this context; `trn1` is what optimum-neuron calls inf2 too.

    `without` leaves one of the names as upstream has it.
    """
    answers = {
        "current_instance_type": lambda: instance_type,
        "get_available_cores": lambda: cores,
        "hub_neuronx_cache": lambda entry=None: nullcontext(),
        "get_neuron_device_memory": lambda: "no device",
        "torch": TorchWithoutScript(),
    }
    backend = import_module(BACKEND)
    chosen = {name.rpartition(".")[2]: name for name in REPLACED if name != without}
    with patch.multiple(backend, **{name: answers[name] for name in chosen}):
        yield


def export(folder: Path, target: Path, batch_size: int = 4, sequence_length: int = 64, **changes: Any) -> Path:
    """Export a Hugging Face folder as `optimum-cli export neuron` does, in an `inferentia` context.

    `changes` are set on the neuron config between `get_neuron_config` and `export`, the only moment for them.
    """
    from optimum.neuron import NeuronModelForCausalLM

    neuron_config = NeuronModelForCausalLM.get_neuron_config(
        str(folder),
        instance_type="inf2",
        batch_size=batch_size,
        sequence_length=sequence_length,
        tensor_parallel_size=1,
    )
    for name, value in changes.items():
        if not hasattr(neuron_config, name):
            raise AttributeError(f"the neuron config has no {name}")
        setattr(neuron_config, name, value)
    NeuronModelForCausalLM.export(str(folder), neuron_config, load_weights=False).save_pretrained(str(target))
    return target
