"""A compiled `NeuronModelForCausalLM` as a backend: every call fills the shape and the rows it was compiled for.

The compiled decode graph runs all of its rows, and row i reads and writes the keys of slot i whatever it is told. So
nothing is left to upstream's padding here:

* a decode step passes all slots; a row without a request repeats a live one, which writes where nobody looks, and the
  row of a prompt that is half encoded writes where the next chunk will;
* a prompt is refused rather than cropped, and no position passes the compiled length;
* a prompt of one token would be taken for a decode step: it goes padded, its positions all zero, through the prefill
  graph, which reads its result at the first largest position.

A prefill costs the full `max_context_length` whatever the prompt; with `prefill_chunk_size` it costs whole chunks.
Source: huggingface/optimum-neuron v0.4.5, optimum/neuron/models/inference/backend/modules/decoder; `prefill_chunk` is
of its main branch.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from server.backends import device_sampling
from server.backends.base import Limits, Sampling, Step
from server.backends.device_sampling import Parameters
from server.backends.sampling import HONOURED, Sampler
from server.backends.selfcheck import check
from server.backends.shape import Shape
from server.errors import ModelError
from server.tokenizer import first_line, generation_config

logger = logging.getLogger(__name__)

ON_HOST = HONOURED - {"prompt_logprobs"}  # the prefill graph gives the logits of a prompt's last token alone
VERSIONS = ("optimum-neuron", "torch-neuronx", "neuronx-cc", "neuronx-distributed", "torch")


@dataclass(slots=True)
class Row:
    """A live slot: its newest token and where that token's key goes, which is the count of tokens before it."""

    token_id: int
    position: int
    parameters: Parameters
    sampler: Sampler | None = None  # where the host samples


class NeuronBackend:
    """The backend contract over `forward` (and `prefill_chunk`, where the export was compiled for it)."""

    def __init__(self, model: Any, eos: Collection[int], suppressed: Sequence[int] = ()) -> None:
        """`model` is a loaded `NeuronModelForCausalLM` that `server.check` finds nothing wrong with, `eos` the ids that
        end a text, `suppressed` those the model must never emit; only the host can keep them from being chosen.
        """
        self._model, self._config = model, model.neuron_config
        config = self._config
        slots, longest = config.batch_size, config.sequence_length
        self._chunk = getattr(config, "prefill_chunk_size", 0)  # 0 in 0.4.5, which has no such thing
        self._device_samples = config.on_device_sampling
        self._eos, self._suppressed = sorted(eos), tuple(suppressed)
        self._limits = Limits(
            slots,
            longest - 1 if self._chunk else min(config.max_context_length, longest - 1),
            longest,
            model.config.get_text_config().vocab_size,
            device_sampling.HONOURED if self._device_samples else ON_HOST,
            device_sampling.ranges(config.max_topk) if self._device_samples else {},
        )
        self._about = {
            "name": "neuron",
            "cores": config.tp_degree * config.pp_degree * config.ep_degree,
            "batch_size": slots,
            "sequence_length": longest,
            "max_context_length": config.max_context_length,
            "prefill_chunk_size": self._chunk,
            "on_device_sampling": config.on_device_sampling,
            "dtype": str(config.torch_dtype).removeprefix("torch."),
            "target": config.target,
            "versions": {name: version for name in VERSIONS if (version := _version(name))},
        }
        self._rows: dict[int, Row] = {}  # of live slots
        self._encoded: dict[int, int] = {}  # tokens already in the cache, of prompts that come in chunks
        self._token_ids = torch.zeros((slots, longest), dtype=torch.int64)  # prompt and generated, for host samplers

    @classmethod
    def load(cls, model: str, eos: Collection[int]) -> NeuronBackend:
        """Load an export onto the device and check it; takes minutes.

        Raises: ModelError in a sentence, whatever upstream says.
        """
        try:
            from optimum.neuron import NeuronModelForCausalLM

            loaded = NeuronModelForCausalLM.from_pretrained(model)
        except Exception as error:  # upstream, torch and the runtime each raise their own kind
            raise ModelError(f"{model} cannot be loaded onto the device: {first_line(error)}") from error
        suppressed = generation_config(model).suppress_tokens or ()
        try:
            backend = cls(loaded, eos, suppressed)
            check(backend)
        except ModelError:
            raise
        except Exception as error:  # the graph's, torch's or the runtime's own kind
            raise ModelError(f"{model} loads but does not run: {first_line(error)}") from error
        if suppressed and backend._device_samples:
            logger.warning("sampled on the device, %d tokens can come that never should", len(suppressed))
        return backend

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def about(self) -> Mapping[str, Any]:
        return self._about

    @torch.no_grad()
    def prefill(self, slot: int, token_ids: Sequence[int], sampling: Sampling) -> Step | None:
        used = len(token_ids)
        if not 1 <= used <= self._limits.max_input_tokens:
            raise ValueError(f"a prompt of {used} tokens: the export takes 1 to {self._limits.max_input_tokens}")
        parameters = device_sampling.GREEDY
        if self._device_samples:
            parameters = device_sampling.parameters(sampling, self._config.max_topk)
        outputs = self._encode(slot, token_ids, parameters)
        if outputs is None:
            return None
        self._token_ids[slot, :used] = torch.tensor(token_ids)
        row = self._rows[slot] = Row(token_ids[-1], used - 1, parameters)
        if not self._device_samples:
            row.sampler = Sampler(sampling, used, self._suppressed, self._eos)
        elif (
            self._chunk
        ):  # the chunked graph gives logits even so: the host draws the first token by the device's rules
            if sampling.do_sample:
                sampling = replace(sampling, top_k=int(parameters[0]))
            sampler = Sampler(sampling, used, self._suppressed, self._eos)
            outputs = [sampler.choose(self._token_ids[slot : slot + 1, :used], *_scored(outputs[0])).token_id]
        return self._advance(slot, row, outputs[0])

    def _encode(self, slot: int, token_ids: Sequence[int], parameters: Parameters) -> Any:
        """The outputs of the prefill graph, or None while chunks are left."""
        at = {
            "seq_ids": torch.tensor([slot]),
            "sampling_params": torch.tensor([parameters], dtype=torch.float32),
        }
        if not self._chunk:
            ids, positions = torch.tensor([token_ids]), torch.arange(len(token_ids)).unsqueeze(0)
            if len(token_ids) == 1:
                ids = torch.nn.functional.pad(ids, (0, self._config.max_context_length - 1))
                positions = torch.zeros_like(ids)
            return self._model.forward(input_ids=ids, position_ids=positions, **at)
        begin = self._encoded.get(slot, 0)
        end = min(begin + self._chunk, len(token_ids))
        ids, positions = torch.tensor([token_ids[begin:end]]), torch.arange(begin, end).unsqueeze(0)
        outputs = self._model.prefill_chunk(input_ids=ids, position_ids=positions, **at)
        if end < len(token_ids):
            self._encoded[slot] = end
            return None
        self._encoded.pop(slot, None)
        return outputs

    @torch.no_grad()
    def decode(self) -> Mapping[int, Step]:
        if not self._rows:
            return {}
        repeated = next(iter(self._rows.values()))
        rows = [self._rows.get(slot, repeated) for slot in range(self._limits.slots)]
        positions = [self._encoded.get(slot, row.position) for slot, row in enumerate(rows)]
        if max(positions) >= self._limits.max_total_tokens:
            raise ValueError(f"a token at position {max(positions)}: the export holds {self._limits.max_total_tokens}")
        outputs = self._model.forward(
            input_ids=torch.tensor([[row.token_id] for row in rows]),
            position_ids=torch.tensor([[position] for position in positions]),
            seq_ids=torch.arange(self._limits.slots),
            sampling_params=torch.tensor([row.parameters for row in rows], dtype=torch.float32),
        )
        return {slot: self._advance(slot, row, outputs[slot]) for slot, row in self._rows.items()}

    def release(self, slot: int) -> None:
        self._rows.pop(slot, None)
        self._encoded.pop(slot, None)

    def _advance(self, slot: int, row: Row, output: Any) -> Step:
        """The token after a row's newest one: from its id, or from its logits (float[1, V])."""
        row.position += 1
        if row.sampler is None:
            step = Step(int(output))
        else:
            step = row.sampler.choose(self._token_ids[slot : slot + 1, : row.position], *_scored(output))
            if row.position < self._limits.max_total_tokens:
                self._token_ids[slot, row.position] = step.token_id
        row.token_id = step.token_id
        return step


def compile_model(model: str, folder: Path, shape: Shape) -> None:
    """Compile a checkpoint and save graph, configs and, of a local one, the sharded weights. Takes minutes to hours.

    Raises: ModelError in a sentence, whatever upstream says.
    """
    try:
        from optimum.neuron import NeuronModelForCausalLM

        config: Any = NeuronModelForCausalLM.get_neuron_config(
            model,
            instance_type=shape.instance_type,
            batch_size=shape.batch_size,
            sequence_length=shape.sequence_length,
            tensor_parallel_size=shape.cores,
        )
        if shape.batch_size > 1 and not config.continuous_batching:
            raise ModelError(f"optimum-neuron compiles {model} for one slot only: say --batch-size 1")
        if shape.on_device_sampling and not config.on_device_sampling:
            raise ModelError(
                f"optimum-neuron does not sample {model} on the device in this shape, where its tokens would be wrong: "
                "leave --on-device-sampling out"
            )
        # Upstream's own arguments end there; what follows is read when the graphs are built.
        if shape.on_device_sampling is False:
            config.on_device_sampling = False
        config.max_context_length = shape.max_context_length
        if hasattr(config, "prefill_chunk_size") and shape.max_context_length < shape.sequence_length:
            config.prefill_chunk_size = 0  # a graph for whole prompts was asked for; 0.4.5 knows no other
        NeuronModelForCausalLM.export(model, config).save_pretrained(str(folder))
    except ModelError:
        raise
    except Exception as error:  # upstream, the compiler and the hub each raise their own kind
        raise ModelError(f"{model} cannot be compiled: {first_line(error)}") from error


def _scored(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """float[1, V] logits in fp32 and their log-softmax."""
    logits = logits.float()
    return logits, logits.log_softmax(-1)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
