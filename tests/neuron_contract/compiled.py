"""optimum-neuron's own graph code runs on the CPU under the rules of a compiled model.

The rules: a call whose shapes and dtypes are none of the compiled ones is an error; a graph has no branches, only the
one way Python went when it was traced with the example inputs; the KV cache is the model's state, one for all graphs,
and lives until the weights are loaded again. `build` gives a ready `LlamaNxDModelForCausalLM`; `boundary(model).calls`
is what reached its graphs.
*Source*: the router's rule and the shards' names: NEURON.md §2.3 on neuronx_distributed 0.15; the rest: what
optimum-neuron 0.4.5 calls. That a branch goes as the example inputs say is reasoned, not seen on a device.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Inputs = tuple[Tensor, ...]


class BaseModelInstance:
    """What gives a graph its module: `load_module()`, then `get(0)` → (module, {state tensor: output index})."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a graph, as it arrived: int32[rows, n], int32[rows, n], int32[rows], float32[rows, 3]."""

    tag: str
    input_ids: Tensor
    position_ids: Tensor
    seq_ids: Tensor
    sampling_params: Tensor


def build(config: Any, neuron_config: Any, weights_folder: Path) -> Any:
    """The real `LlamaNxDModelForCausalLM`, compiled here and loaded from a Hugging Face folder; nothing is patched.

    This is `NxDPreTrainedModel._export(load_weights=True)` without the questions to the device. Versions: 0.4.5 has one
    traced model, the main branch a dictionary of bundles, of which a Llama has one.
    """
    from optimum.neuron.models.inference.backend.pretrained_model import get_builder
    from optimum.neuron.models.inference.llama.modeling_llama import LlamaNxDModelForCausalLM as Llama

    config, neuron_config = copy.deepcopy(config), copy.deepcopy(neuron_config)
    config.torch_dtype = neuron_config.torch_dtype
    graph_builders = Llama.create_graph_builders(config, neuron_config)
    traced = Llama.compile(neuron_config, graph_builders, Llama.get_compiler_args(neuron_config))
    model = Llama(config, neuron_config, traced, graph_builders)
    bundle = graph_builders.get("model", graph_builders)
    loader = partial(model.checkpoint_loader_fn, str(weights_folder), config, neuron_config)
    shards = get_builder(neuron_config, bundle, checkpoint_loader=loader).shard_checkpoint()
    boundary(model).initialize(shards, torch.tensor([0], dtype=torch.int32))
    return model


def boundary(model: Any) -> TracedModel:
    """The compiled side of a model, under either version's name."""
    return model.token_generation_model.model


class ModelBuilder:
    """Collects graphs, then traces them or writes the weights as they want them."""

    def __init__(self, *, tp_degree: int, world_size: int, checkpoint_loader: Any = None, **other: object) -> None:
        if (tp_degree, world_size) != (1, 1):
            raise NotImplementedError(f"{world_size} ranks need Neuron devices; tp_degree must be 1 here")
        self.checkpoint_loader = checkpoint_loader
        self.parts: list[tuple[str, BaseModelInstance, Inputs]] = []

    def add(
        self, key: str, model_instance: BaseModelInstance, example_inputs: list[Inputs], **compiler_options: object
    ) -> None:
        (inputs,) = example_inputs
        self.parts.append((key, model_instance, inputs))

    def trace(self, initialize_model_weights: bool) -> TracedModel:
        assert not initialize_model_weights
        return TracedModel(self.parts)

    def shard_checkpoint(self, serialize_path: str | None = None) -> list[dict[str, Tensor]]:
        """The one rank's weights; with a path, also its file `tp0_sharded_checkpoint.safetensors`."""
        weights = self.checkpoint_loader()
        module = Graph(*self.parts[0]).module
        for name, part in module.named_modules():
            if hasattr(part, "preshard_hook"):
                part.preshard_hook(weights, f"{name}.weight")
        wanted = [name for name, _ in module.named_parameters() if not name.startswith("kv_mgr.")]
        shard = {name: weights[name].contiguous() for name in wanted}
        if serialize_path is not None:
            Path(serialize_path).mkdir(parents=True, exist_ok=True)
            save_file(shard, Path(serialize_path) / "tp0_sharded_checkpoint.safetensors")
        return [shard]


class TracedModel(nn.Module):
    """A compiled model: a router over graphs that share weights and KV cache. Pickled, it has neither."""

    def __init__(self, parts: list[tuple[str, BaseModelInstance, Inputs]]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.parts = parts
        self.graphs = {signature(inputs): Graph(tag, instance, inputs) for tag, instance, inputs in self.parts}
        self.initialized = False

    def __reduce__(self) -> tuple[Any, ...]:
        return TracedModel, (self.parts,)

    @property
    def nxd_model(self) -> TracedModel:
        return self

    @property
    def kv(self) -> list[Tensor]:
        """Keys and values by turns, layer by layer: float[slots, heads, sequence_length, head_dim]."""
        return next(iter(self.graphs.values())).state

    @torch.no_grad()
    def initialize(self, shards: list[dict[str, Tensor]], start_rank: Tensor) -> None:
        """Load the weights of the one rank and empty the KV cache."""
        (shard,) = shards
        kv = [torch.zeros_like(tensor) for tensor in self.kv]
        for graph in self.graphs.values():
            graph.load(shard, kv)
        self.initialized = True

    @torch.no_grad()
    def forward(self, *inputs: Tensor) -> Tensor:
        """Raises: RuntimeError before the weights are loaded; KeyError when no graph was compiled for these inputs."""
        if not self.initialized:
            raise RuntimeError("the compiled model has no weights yet")
        graph = self.graphs.get(signature(inputs))
        if graph is None:
            raise KeyError(f"no graph was compiled for {signature(inputs)}, only for {list(self.graphs)}")
        self.calls.append(Call(graph.tag, *(tensor.clone() for tensor in inputs)))
        return graph(inputs)


class Graph:
    """One traced module. Its state tensors are given the outputs that alias them after every call."""

    def __init__(self, tag: str, instance: Any, example_inputs: Inputs) -> None:
        self.tag = tag
        instance = copy.copy(instance)  # the builder's own stays without a module, for the pickle
        with torch.random.fork_rng(devices=[]):
            instance.load_module()
            self.module, aliases = instance.get(0)
            self.state, self.aliases = list(aliases), list(aliases.values())
            self.branches = Recorded()
            with torch.no_grad(), self.branches:
                self.module(*example_inputs)

    def load(self, shard: dict[str, Tensor], kv: list[Tensor]) -> None:
        for tensor, shared in zip(self.state, kv, strict=True):
            tensor.data = shared
        weights = {name: tensor for name, tensor in self.module.named_parameters() if not name.startswith("kv_mgr.")}
        for name, tensor in weights.items():
            if shard[name].shape != tensor.shape or shard[name].dtype != tensor.dtype:
                raise ValueError(f"{name} is {shard[name].dtype}{list(shard[name].shape)} in the checkpoint")
            tensor.data = shard[name]

    def __call__(self, inputs: Inputs) -> Tensor:
        with Replayed(self.branches.taken):
            outputs = self.module(*inputs)
        for tensor, output in zip(self.state, self.aliases, strict=True):
            tensor.copy_(outputs[output])
        return outputs[0]


class Recorded(TorchFunctionMode):
    """Notes which way each `if tensor:` went."""

    def __init__(self) -> None:
        self.taken: list[bool] = []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is Tensor.__bool__:
            self.taken.append(result)
        return result


class Replayed(TorchFunctionMode):
    """Goes every `if tensor:` the noted way, whatever the tensor says."""

    def __init__(self, taken: list[bool]) -> None:
        self.left: Iterator[bool] = iter(taken)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return next(self.left) if func is Tensor.__bool__ else func(*args, **(kwargs or {}))


def signature(inputs: Inputs) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    return tuple((tuple(tensor.shape), tensor.dtype) for tensor in inputs)
