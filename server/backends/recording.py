"""A pass recorded: it runs without the interpreter, and multiplies as suits its number of rows.

Of a small model's step Python takes more than half, and its lock from the event loop. `torch.jit.trace` needs no
compiler and shares the weights. It can't see a choice that depends on a value, such as an expert's: it warns, and such
a model runs as it is, and so does one whose recording does not give what the model gives.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface

from server.backends.passes import DecodePass, Pass, PromptPass
from server.tokenizer import first_line

logger = logging.getLogger(__name__)

TOLERANCE = 1e-2  # of logits, relative to their spread
FEW = 4  # rows, up to which `product_of_few` is the faster; docs/cpu-speed.md

Forward = Callable[..., torch.Tensor]  # of `PromptPass.forward`'s or `DecodePass.forward`'s arguments and result


def recorded(
    by_model: Pass,
    name: str,
    inputs: Sequence[torch.Tensor],
    others: Sequence[torch.Tensor],
    multiplying: FewRows | None = None,
) -> Forward:
    """A pass without the interpreter, recorded with `inputs`; `by_model` itself where it can't be recorded, or where
    the recording goes wrong on `others`, which differ from `inputs` in what may differ. The log calls it `name`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.export's graphs run in the interpreter again
            warnings.simplefilter("error", torch.jit.TracerWarning)
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module="torch.")  # at weights' shapes
            attending = attending_by_hand(by_model.model, ATTENTION[type(by_model)])
            with attending, multiplying or nullcontext():
                recording: Forward = torch.jit.trace(by_model, tuple(inputs), check_trace=False)
        must_agree(recording(*others), by_model(*others), "the recording is off")
    except Exception as error:  # whatever a stranger's model does while it is recorded
        why = error.__cause__ or error  # a warning that C code has met is only the cause of what it raises
        logger.info("%s run through the interpreter: %s", name, first_line(why))
        return by_model
    logger.info("%s are recorded", name)
    return recording


def recorded_by_rows(
    by_model: DecodePass, slots: int, inputs: Sequence[torch.Tensor], others: Sequence[torch.Tensor]
) -> Forward:
    """A step of up to so many slots, multiplying as suits their number."""
    few = recorded(by_model, f"decode steps of up to {FEW} rows", inputs, others, FewRows())
    if few is not by_model and slots <= FEW:
        return few
    many = recorded(by_model, "decode steps of any number of rows", inputs, others)
    return many if few is by_model else ByRows(few, many)


def must_agree(found: torch.Tensor, wanted: torch.Tensor, otherwise: str) -> None:
    """Of logits. Raises: RuntimeError where they don't, which begins with `otherwise`."""
    difference = float((found - wanted).abs().max() / wanted.std().clamp_min(1e-6))
    if not difference <= TOLERANCE:
        raise RuntimeError(f"{otherwise} by {difference:.3g} standard deviations (limit {TOLERANCE:g})")


@contextmanager
def attending_by_hand(model: Any, implementation: str) -> Iterator[None]:
    """A model that attends by SDPA attends by one of the functions below: what transformers puts around SDPA looks at
    shapes.
    """
    before = model.config._attn_implementation
    if before == "sdpa":
        model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def one_query(
    _module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, None]:
    """float[n, heads, 1, d] over float[n, kv_heads, window, d] -> float[n, 1, heads, d]

    Not by SDPA, whose kernels are made for many queries.
    """
    rows, heads, _, size = query.shape
    kv_heads = key.shape[1]
    scaling = options.get("scaling") or size**-0.5
    by_group = (query * scaling).reshape(rows, kv_heads, -1, size)
    weights = (by_group @ key.transpose(2, 3) + mask).softmax(-1)
    return (weights @ value).reshape(rows, 1, heads, -1), None


def causal(
    _module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """float[1, heads, n, d] over float[1, kv_heads, n, d] -> float[1, n, heads, d]"""
    attended = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=options.get("scaling"), enable_gqa=True
    )
    return attended.transpose(1, 2).contiguous(), None


ATTENTION = {PromptPass: "tokenclock-causal", DecodePass: "tokenclock-one-query"}
AttentionInterface.register(ATTENTION[PromptPass], causal)
AttentionInterface.register(ATTENTION[DecodePass], one_query)


class ByRows:
    """A step of one to `FEW` rows by one pass, of more by another."""

    def __init__(self, few: Forward, many: Forward) -> None:
        self._few, self._many = few, many

    def __call__(self, token_ids: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        return (self._few if len(token_ids) <= FEW else self._many)(token_ids, *more)


class FewRows(TorchFunctionMode):  # type: ignore[misc]  # torch is Any to mypy
    """Linear layers multiply by `product_of_few`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear:
            func = product_of_few
        return func(*args, **(kwargs or {}))


def product_of_few(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight.T + bias, as weight @ x.T: float[n, k] or float[n, 1, k], float[m, k] -> float[n, m] or float[n, 1, m]

    The BLAS then copies the rows into the order that it reads them in, not the weights.
    """
    rows = x.squeeze(1) if x.dim() == 3 else x
    y = torch.mm(weight, rows.t()).t().contiguous()
    if bias is not None:
        y = y + bias
    return y.unsqueeze(1) if x.dim() == 3 else y
