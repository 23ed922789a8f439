"""Each function here computes on one CPU rank what the Neuron package's function of that name computes on a device.

Shapes and arguments are those optimum-neuron 0.4.5 passes; an unknown argument is a TypeError, so that a new one is
noticed. With one rank there is nothing to gather, to shard or to pad.
*Source*: optimum-neuron 0.4.5's calls; https://openxla.org/xla/operation_semantics for DynamicUpdateSlice and Rng.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class OneRank:
    """The tensor parallel group; `torch.distributed.get_world_size(group=...)` asks it for its size."""

    def size(self) -> int:
        return 1


class Hardware(Enum):
    TRN1 = "trn1"
    TRN2 = "trn2"


class ColumnParallelLinear(nn.Linear):
    pad_size = 0

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        gather_output: bool = True,
        dtype: torch.dtype = torch.float32,
        pad: bool = False,
        tensor_model_parallel_group: OneRank | None = None,
    ) -> None:
        super().__init__(input_size, output_size, bias=bias, dtype=dtype)
        self.gather_output = gather_output
        self.tensor_parallel_group = tensor_model_parallel_group or OneRank()


class RowParallelLinear(nn.Linear):
    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        input_is_parallel: bool = False,
        dtype: torch.dtype = torch.float32,
        pad: bool = False,
        reduce_dtype: torch.dtype = torch.float32,
        tensor_model_parallel_group: OneRank | None = None,
    ) -> None:
        super().__init__(input_size, output_size, bias=bias, dtype=dtype)


class ParallelEmbedding(nn.Embedding):
    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        dtype: torch.dtype = torch.float32,
        shard_across_embedding: bool = False,
        pad: bool = False,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, dtype=dtype)


class SPMDRank(nn.Module):
    def __init__(self, world_size: int) -> None:
        super().__init__()
        self.rank = nn.Parameter(torch.zeros(world_size, dtype=torch.int32), requires_grad=False)

    def get_rank(self) -> Tensor:
        return self.rank


def divide(numerator: int, denominator: int) -> int:
    if numerator % denominator:
        raise ValueError(f"{numerator} is not divisible by {denominator}")
    return numerator // denominator


def get_number_of_extra_heads(n_head: int, tp_degree: int) -> int:
    return -n_head % tp_degree


def argmax(
    tensor: Tensor, dim: int, gather_dim: int, keepdim: bool = False, process_group: OneRank | None = None
) -> Tensor:
    return torch.argmax(tensor, dim=dim, keepdim=keepdim)


def topk(
    tensor: Tensor, k: int, dim: int, gather_dim: int, process_group: OneRank, stages: int, rank_id: Tensor
) -> tuple[Tensor, Tensor]:
    values, indices = torch.topk(tensor, k, dim=dim)
    return values, indices


def nki_jit(kernel: Any = None, **options: object) -> Any:
    """`@jit` and `@jit(mode=...)`: the kernel itself, which is ours or needs a device."""
    return nki_jit if kernel is None else kernel


def cumsum_kernel(source: Tensor, target: Tensor, axis: int) -> None:
    target.copy_(torch.cumsum(source, dim=axis))


class RmsNorm:
    @staticmethod
    def apply(hidden: Tensor, weight: Tensor, eps: float, dim: int) -> Tensor:
        return hidden * torch.rsqrt(hidden.square().mean(dim, keepdim=True) + eps) * weight


def xla_hlo_call(build: Callable[..., Any]) -> Callable[..., Tensor]:
    """`build` describes one HLO instruction in terms of its operands; here the operands are tensors and it is done."""
    return lambda *operands: build(*(Operand(tensor) for tensor in operands))


class Operand:
    """A tensor as `torch_neuronx`'s HLO builder shows it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.dtype = HloType(tensor.dtype)
        self.sizes = tuple(tensor.shape)
        self.scribe = SimpleNamespace(u32=HloType(torch.int32))


class HloType:
    """The builder of instructions of one dtype; `dtype[shape]` is that of one dtype and shape."""

    def __init__(self, dtype: torch.dtype, shape: tuple[int, ...] = ()) -> None:
        self.dtype, self.shape = dtype, shape

    def __getitem__(self, shape: tuple[int, ...]) -> HloType:
        return HloType(self.dtype, shape)

    def Constant(self, constant_value: float) -> Operand:  # noqa: N802 - XLA's name
        return Operand(torch.full(self.shape, constant_value, dtype=self.dtype))

    def DynamicUpdateSlice(self, target: Operand, update: Operand, *starts: Operand) -> Tensor:  # noqa: N802
        """XLA clamps a start so that the update fits: a slot past the last one is the last one."""
        result = target.tensor.clone()
        room = [whole - part for whole, part in zip(target.sizes, update.sizes, strict=True)]
        first = [min(max(int(start.tensor), 0), most) for start, most in zip(starts, room, strict=True)]
        result[tuple(slice(a, a + n) for a, n in zip(first, update.sizes, strict=True))] = update.tensor
        return result

    def Rng(self, minimum: Operand, maximum: Operand, distribution: int) -> Tensor:  # noqa: N802
        """Uniform in [minimum, maximum), drawn from torch's default generator."""
        if distribution != 1:
            raise NotImplementedError(f"Rng distribution {distribution} needs a Neuron device; here is uniform (1)")
        return minimum.tensor + (maximum.tensor - minimum.tensor) * torch.rand(self.shape, dtype=self.dtype)
