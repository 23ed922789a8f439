"""What optimum-neuron's main branch offers for prompts in chunks, over a plain Llama on the CPU.

0.4.5 has no `prefill_chunk`, so its contract is rebuilt here: one chunk a call, padded by repeating its last token,
written into the slot's row at its own positions, logits of its last token; `forward` refuses prompts, takes one
token a row, and fills absent rows with the first one's token and position. Where the installed optimum-neuron has
chunks, the tests run its own classes instead.
Source: huggingface/optimum-neuron@213224e6, models/inference/backend/modules/decoder.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import Cache

MAX_TOPK = 256


class Rows(Cache):
    """Keys and values float[slots, kv_heads, length, head_dim] a layer; a call writes `positions` of `slots`."""

    def __init__(self, config: Any, slots: int, length: int) -> None:
        super().__init__(layers=[])
        shape = (slots, config.num_key_value_heads, length, config.hidden_size // config.num_attention_heads)
        self.kept = [(torch.zeros(shape), torch.zeros(shape)) for _ in range(config.num_hidden_layers)]
        self.slots = self.positions = torch.zeros(0, dtype=torch.int64)

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        for rows, new in zip(self.kept[layer_idx], (keys, values), strict=True):
            rows[self.slots[:, None], :, self.positions] = new.transpose(1, 2)
        return tuple(rows[self.slots] for rows in self.kept[layer_idx])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.kept[0][0].shape[2] - 1

    def get_mask_sizes(self, *_: Any, **__: Any) -> tuple[int, int]:
        return self.kept[0][0].shape[2], 0


class ChunkedModel:
    """The part of main's `LlamaNxDModelForCausalLM` that a backend uses."""

    def __init__(self, folder: Path, slots: int, length: int, chunk: int, on_device_sampling: bool) -> None:
        self.plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.config = self.plain.config
        self.neuron_config = SimpleNamespace(
            batch_size=slots,
            max_batch_size=slots,
            continuous_batching=slots > 1,
            sequence_length=length,
            max_context_length=length,
            prefill_chunk_size=chunk,
            on_device_sampling=on_device_sampling,
            max_topk=MAX_TOPK,
            output_logits=False,
            torch_dtype=torch.float32,
            target="trn1",
            tp_degree=1,
            pp_degree=1,
            ep_degree=1,
        )
        self.rows = Rows(self.config, slots, length)

    def prefill_chunk(self, input_ids: Any, position_ids: Any, seq_ids: Any, sampling_params: Any) -> torch.Tensor:
        used, size = input_ids.shape[1], self.neuron_config.prefill_chunk_size
        assert input_ids.shape == position_ids.shape == (1, used)
        assert used <= size, "a chunk is not cropped"
        assert sampling_params.shape == (1, 3)
        padding = [used - 1] * (size - used)
        picked = [*range(used), *padding]
        return self._run(input_ids[:, picked], position_ids[:, picked], seq_ids)[:, used - 1 : used]

    def forward(self, input_ids: Any, position_ids: Any, seq_ids: Any, sampling_params: Any) -> torch.Tensor:
        assert input_ids.shape[1] == 1, "prompts go through prefill_chunk"
        count, slots = len(seq_ids), self.neuron_config.batch_size
        assert sampling_params.shape == (count, 3)
        absent = [slot for slot in range(slots) if slot not in seq_ids.tolist()]
        filled = [*range(count), *[0] * len(absent)]
        everyone = torch.tensor([*seq_ids.tolist(), *absent])
        logits = self._run(input_ids[filled], position_ids[filled], everyone)[:count]
        return logits[:, -1].argmax(-1) if self.neuron_config.on_device_sampling else logits

    def _run(self, input_ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        self.rows.slots, self.rows.positions = slots, positions
        length = self.neuron_config.sequence_length
        seen = torch.arange(length)[None, None, None] <= positions[:, None, :, None]
        mask = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
        with torch.inference_mode():
            return self.plain(
                input_ids=input_ids,
                position_ids=positions,
                attention_mask=mask,
                past_key_values=self.rows,
                use_cache=True,
                cache_position=positions[0],
            ).logits
