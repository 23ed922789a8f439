"""A decode step as a function of tensors alone: recorded once, it runs without the interpreter.

Of a small model's step Python takes more than half, and its lock from the event loop. `torch.jit.trace` needs no
compiler and shares the weights. It can't see a choice that depends on a value, such as an expert's: it warns, and such
a model runs as it is, and so does one whose recording does not give what the model gives.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from server.tokenizer import first_line

logger = logging.getLogger(__name__)

TOLERANCE = 1e-2  # of logits, relative to their spread
BY_HAND = "tokenclock"  # the name of `attention` among transformers' implementations

Graph = Callable[..., torch.Tensor]  # of `DecodeStep.forward`'s arguments and result


class StepCache(Cache):  # type: ignore[misc]  # transformers is Any to mypy
    """The cache of one step: every row appends one position, each at its own place."""

    def __init__(self, positions: torch.Tensor, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
        super().__init__(layers=[])
        self._positions = positions
        self._rows = torch.arange(positions.shape[0])
        self._keys, self._values = keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Called by every attention layer with float[n, kv_heads, 1, head_dim]."""
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys[self._rows, :, self._positions] = key_states[:, :, 0]
        values[self._rows, :, self._positions] = value_states[:, :, 0]
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        return self._keys[0].shape[2] - 1

    def get_mask_sizes(self, *_args: Any, **_kwargs: Any) -> tuple[int, int]:
        return self._keys[0].shape[2], 0


class DecodeStep(torch.nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    def __init__(self, model: Any, takes_cache_position: bool) -> None:
        super().__init__()
        self._model = model
        self._takes_cache_position = takes_cache_position

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor,
        last: torch.Tensor,
        *rows: torch.Tensor,
    ) -> torch.Tensor:
        """One pass over n rows, each of which writes its key at its own position. Returns float[n, V].

        int64[n, 1], int64[n], float[n, 1, 1, window], int64[1]: the window's last position; then the keys of all layers
        and the values of all layers, float[n, kv_heads, window, head_dim].
        """
        layers = len(rows) // 2
        more = {"cache_position": last} if self._takes_cache_position else {}
        output = self._model(
            input_ids=token_ids,
            position_ids=positions.unsqueeze(1),
            attention_mask=mask,
            past_key_values=StepCache(positions, rows[:layers], rows[layers:]),
            use_cache=True,
            **more,
        )
        return output.logits[:, -1]


def recorded(step: DecodeStep, model: Any, inputs: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> Graph:
    """`step` without the interpreter, recorded with `inputs`; `step` itself where it can't be recorded, or where the
    recording goes wrong on `others`, which differ from `inputs` in everything that may differ.
    """
    try:
        with warnings.catch_warnings(), attending_by_hand(model):
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.export's graphs run in the interpreter again
            warnings.simplefilter("error", torch.jit.TracerWarning)
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning, module="torch.")  # at weights' shapes
            recording: Graph = torch.jit.trace(step, tuple(inputs), check_trace=False)
        wanted, got = step(*others), recording(*others)
        difference = float((got - wanted).abs().max() / wanted.std().clamp_min(1e-6))
        if not difference <= TOLERANCE:
            raise RuntimeError(f"the recording is off by {difference:.3g} standard deviations (limit {TOLERANCE:g})")
    except Exception as error:  # whatever a stranger's model does while it is recorded
        logger.info("decode steps run through the interpreter: %s", first_line(error))
        return step
    logger.info("decode steps are recorded")
    return recording


@contextmanager
def attending_by_hand(model: Any) -> Iterator[None]:
    """A model that attends by SDPA attends by `attention` here: SDPA's kernels are made for many queries, and what
    transformers puts around them looks at shapes.
    """
    before = model.config._attn_implementation
    if before == "sdpa":
        model.set_attn_implementation(BY_HAND)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attention(
    _module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, None]:
    """float[n, heads, 1, d] over float[n, kv_heads, window, d] -> float[n, 1, heads, d]"""
    rows, heads, _, size = query.shape
    kv_heads = key.shape[1]
    scaling = options.get("scaling") or size**-0.5
    by_group = (query * scaling).reshape(rows, kv_heads, -1, size)
    weights = (by_group @ key.transpose(2, 3) + mask).softmax(-1)
    return (weights @ value).reshape(rows, 1, heads, -1), None


AttentionInterface.register(BY_HAND, attention)
