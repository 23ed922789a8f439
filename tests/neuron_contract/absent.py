"""The packages that exist only on Neuron machines can be imported here: what a Llama needs of them computes on one CPU
rank, and everything else raises "needs a Neuron device".

`install()` is for the whole process and can't be undone: optimum-neuron keeps what it has imported. transformers must
be imported first, since it looks for torch_xla. What stands in has no distribution metadata, so transformers'
`is_torch_xla_available()` and optimum's `is_neuronx_available()` stay false, as they are on this machine.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from tests.neuron_contract import compiled, one_rank

ROOTS = ("neuronx_distributed", "neuronxcc", "torch_neuronx", "torch_xla", "libneuronxla")
COMPILER_VERSION = "2.21.0+cpu"
BODIES: dict[str, dict[str, Any]] = {
    "neuronx_distributed.operators.argmax": {"argmax": one_rank.argmax},
    "neuronx_distributed.operators.topk": {"topk": one_rank.topk},
    "neuronx_distributed.parallel_layers.layers": {
        "ColumnParallelLinear": one_rank.ColumnParallelLinear,
        "RowParallelLinear": one_rank.RowParallelLinear,
        "ParallelEmbedding": one_rank.ParallelEmbedding,
        "SPMDRank": one_rank.SPMDRank,
    },
    "neuronx_distributed.parallel_layers.pad": {"get_number_of_extra_heads": one_rank.get_number_of_extra_heads},
    "neuronx_distributed.parallel_layers.parallel_state": {
        "get_tensor_model_parallel_group": one_rank.OneRank,
        "model_parallel_is_initialized": lambda: True,
    },
    "neuronx_distributed.parallel_layers.utils": {"divide": one_rank.divide},
    "neuronx_distributed.trace.hlo_utils": {"NXD_LAYOUT_TRANSFORMATION_OPTIONS": "NXD_LAYOUT_TRANSFORMATION_OPTIONS"},
    "neuronx_distributed.trace.model_builder": {
        "BaseModelInstance": compiled.BaseModelInstance,
        "ModelBuilder": compiled.ModelBuilder,
    },
    "neuronx_distributed.utils.utils": {"hardware": one_rank.Hardware},
    "neuronxcc": {"__version__": COMPILER_VERSION},
    "neuronxcc.nki": {"jit": one_rank.nki_jit},
    "neuronxcc.nki._private_kernels.cumsum": {"cumsum": one_rank.cumsum_kernel},
    "torch_neuronx.utils": {"get_platform_target": lambda: "trn1"},
    "torch_neuronx.xla_impl.base": {"xla_hlo_call": one_rank.xla_hlo_call},
    "torch_neuronx.xla_impl.ops": {
        "RmsNorm": one_rank.RmsNorm,
        "nki_jit": one_rank.nki_jit,
        "xla_hlo_call": one_rank.xla_hlo_call,
    },
}


def install() -> None:
    """Make the absent packages importable, once.

    Raises: RuntimeError when transformers isn't imported yet, or when a real (or PyPI placeholder) package is here.
    """
    if any(isinstance(finder, Absent) for finder in sys.meta_path):
        return
    if "transformers" not in sys.modules:
        raise RuntimeError("import transformers before the stand-ins: it looks for torch_xla while it is imported")
    if present := [root for root in ROOTS if find_spec(root)]:
        raise RuntimeError(f"{', '.join(present)} is installed; these tests stand in for packages that are absent")
    sys.meta_path.append(Absent())
    for name in BODIES:
        # `from package import module` takes an attribute before it looks for a module, and every attribute exists.
        __import__(name)


class Absent(MetaPathFinder, Loader):
    """Finds every module under the absent roots."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        return ModuleSpec(fullname, self, is_package=True) if fullname.split(".")[0] in ROOTS else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(BODIES.get(module.__name__, {}))


class StandIn(ModuleType):
    """A module whose every unknown public name is a class that can be named and subclassed, but not called."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        full_name = f"{self.__name__}.{name}"

        def refuse(*args: object, **options: object) -> None:
            raise NotImplementedError(f"{full_name} needs a Neuron device")

        return type(name, (), {"__new__": refuse, "__module__": self.__name__})
