"""Any Hugging Face causal LM on the CPU, with one KV row per slot and one forward pass per decode step.

KV rows are float[slots, kv_heads, max_total_tokens, head_dim] per layer. A prefill runs alone (batch 1) and writes its
keys and values into the slot's row. A decode step runs the rows from the first live one to the last, and what lies
between; row i writes its key at its own position and sees positions 0..position of its own row. Only the occupied part
of the rows, rounded up to `WINDOW`, takes part in attention.

Numerics: a row's result doesn't depend on its neighbours' content; on their number and its place it may, in the last
bits: other kernels multiply other shapes. It is computed in fp32 whatever the checkpoint's type.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from server.backends.base import Limits, Sampling, Score, Step
from server.backends.kv_rows import KVRows
from server.backends.passes import DecodePass, PromptPass
from server.backends.recording import FEW, Forward, must_agree, recorded, recorded_by_rows
from server.backends.sampling import HONOURED, Sampler, likeliest, score
from server.errors import ModelError
from server.tokenizer import first_line

logger = logging.getLogger(__name__)

WINDOW = 128  # positions; attention over the rows is cut to a multiple of this
UNSEEN = torch.finfo(torch.float32).min


class TransformersBackend:
    """The backend contract over `AutoModelForCausalLM`."""

    def __init__(self, model: Any, slots: int, max_total_tokens: int, eos: Collection[int]) -> None:
        """`eos` are the ids that end a text, as the tokenizer's side has them."""
        self._model = model
        vocabulary = model.get_input_embeddings().num_embeddings
        self._limits = Limits(slots, max_total_tokens - 1, max_total_tokens, vocabulary, HONOURED)
        self._eos = sorted(eos)
        self._suppressed = tuple(model.generation_config.suppress_tokens or ())
        self._prompt: Forward = PromptPass(model)  # recorded by `check`
        self._step: Forward = DecodePass(model)  # recorded by `check`
        self._scored_prompt = PromptPass(model, logits_to_keep=0)
        self._rows = KVRows(model, slots, max_total_tokens)
        self._token_ids = torch.zeros((slots, max_total_tokens), dtype=torch.int64)  # prompt and generated
        self._lengths = [0] * slots
        self._samplers: dict[int, Sampler] = {}  # of live slots
        self._places = torch.arange(max_total_tokens)

    @classmethod
    def load(
        cls, model: str, slots: int, max_total_tokens: int, threads: int | None, eos: Collection[int]
    ) -> TransformersBackend:
        """Load weights from a folder or the hub, in fp32, and check that slots and plain forward agree.

        Raises: ModelError where the model cannot be loaded, is too short, or cannot be laid out in KV rows.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        try:
            loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        except ModuleNotFoundError:
            raise
        except Exception as error:  # safetensors, accelerate and quantizers each raise their own kind
            raise ModelError(f"{model} cannot be loaded: {first_line(error)}") from error
        loaded.eval()
        longest = longest_text(loaded.config.get_text_config())
        if longest is not None and max_total_tokens > longest:
            raise ModelError(
                f"{model} attends over at most {longest} positions; --max-total-tokens {max_total_tokens} passes them: "
                f"ask for at most {longest}"
            )
        try:
            backend = cls(loaded, slots, max_total_tokens, eos)
            backend.check()
        except (TypeError, AttributeError, IndexError, RuntimeError) as error:
            raise ModelError(
                f"{type(loaded).__name__} cannot be served from KV rows: {error}; use a decoder with ordinary causal "
                "attention, such as Llama"
            ) from error
        return backend

    @property
    def limits(self) -> Limits:
        return self._limits

    @property
    def about(self) -> Mapping[str, Any]:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        return {
            "name": "cpu",
            "cores": torch.get_num_threads(),
            "batch_size": self._limits.slots,
            "sequence_length": self._limits.max_total_tokens,
            "dtype": "float32",
            "versions": versions,
        }

    @torch.inference_mode()
    def prefill(self, slot: int, token_ids: Sequence[int], sampling: Sampling) -> Step:
        used = self._lengths[slot] = len(token_ids)
        inputs = self._prompt_inputs(slot, token_ids)
        ids = inputs[0]
        logits = (self._scored_prompt if sampling.prompt_logprobs else self._prompt)(*inputs)
        self._token_ids[slot, :used] = ids
        self._samplers[slot] = Sampler(sampling, used, self._suppressed, self._eos)
        prompt = prompt_scores(ids, logits, sampling) if sampling.prompt_logprobs else ()
        last = logits[-1:]
        step = self._choose(slot, last, last.log_softmax(-1))
        return Step(step.token_id, step.score, prompt)

    @torch.inference_mode()
    def decode(self) -> Mapping[int, Step]:
        first = min(self._samplers)
        logits = self._step(*self._step_inputs(slice(first, max(self._samplers) + 1), max(self._lengths)))
        logprobs = logits.log_softmax(-1)
        steps = self._likeliest(first, logits, logprobs)
        for slot in self._samplers.keys() - steps:
            row = slice(slot - first, slot - first + 1)
            steps[slot] = self._choose(slot, logits[row], logprobs[row])
        return {slot: steps[slot] for slot in self._samplers}

    @torch.inference_mode()
    def release(self, slot: int) -> None:
        self._samplers.pop(slot, None)
        self._rows.clear(slot, self._lengths[slot])
        self._lengths[slot] = 0

    def _prompt_inputs(self, slot: int, token_ids: Sequence[int]) -> list[torch.Tensor]:
        """What the pass of a prompt takes."""
        used, row = len(token_ids), slice(slot, slot + 1)
        return [torch.tensor(token_ids, dtype=torch.int64), self._places[:used], *self._rows.part(row, used)]

    def _step_inputs(self, slots: slice, length: int) -> list[torch.Tensor]:
        """What a step of some rows takes: each live row's newest token, over a window that holds `length` positions."""
        # The newest token of a live row has no key yet: it goes to position length - 1. Dead rows write position 0, and
        # see it: a row that sees nothing at all would be NaN.
        positions = torch.tensor([max(length - 1, 0) for length in self._lengths[slots]])
        window = min(-(-length // WINDOW) * WINDOW, self._limits.max_total_tokens)
        rows = torch.arange(slots.start, slots.stop)
        seen = self._places[:window] <= positions.unsqueeze(1)
        return [
            self._token_ids[rows, positions].unsqueeze(1),
            positions,
            torch.where(seen, 0.0, UNSEEN)[:, None, None],
            torch.tensor([window - 1]),
            *self._rows.part(slots, window),
        ]

    def _likeliest(self, first: int, logits: torch.Tensor, logprobs: torch.Tensor) -> dict[int, Step]:
        """The next tokens of slots that take the likeliest. float[n, V]: of the slots from `first` on."""
        slots = [slot for slot, sampler in self._samplers.items() if sampler.takes_likeliest]
        rows = [slot - first for slot in slots]
        chosen = likeliest([self._samplers[slot] for slot in slots], logits[rows], logprobs[rows])
        return {slot: self._appended(slot, step) for slot, step in zip(slots, chosen, strict=True)}

    def _choose(self, slot: int, logits: torch.Tensor, logprobs: torch.Tensor) -> Step:
        """A live slot's next token."""
        before = self._token_ids[slot : slot + 1, : self._lengths[slot]]
        return self._appended(slot, self._samplers[slot].choose(before, logits, logprobs))

    def _appended(self, slot: int, step: Step) -> Step:
        """The same, its token now part of the slot's text, so that the next step feeds it."""
        length = self._lengths[slot]
        if length < self._limits.max_total_tokens:
            self._token_ids[slot, length] = step.token_id
            self._lengths[slot] = length + 1
        return step

    @torch.inference_mode()
    def check(self) -> None:
        """Record both passes. Two texts of different length through the slots give the logits of the plain model; this
        warms up, too.

        Raises: RuntimeError where they do not: the model places positions or masks in a way KV rows cannot follow.
        """
        longest = min(24, self._limits.max_total_tokens - 2)
        vocabulary = self._model.config.get_text_config().vocab_size
        texts = [[(7 * i + 11 * slot) % vocabulary for i in range(max(1, longest - 7 * slot))] for slot in (0, 1)]
        texts = texts[: self._limits.slots]
        other = [(5 * i + 3) % vocabulary for i in range(longest // 2 + 1)]
        prompts = self._prompt_inputs(0, texts[0]), self._prompt_inputs(len(texts) - 1, other)
        self._prompt = recorded(PromptPass(self._model), "prompts", *prompts)
        for slot, text in enumerate(texts):
            texts[slot] = [*text, self.prefill(slot, text, Sampling()).token_id]
        slots, both = self._limits.slots, slice(0, len(texts))
        steps = self._step_inputs(both, 1), self._step_inputs(slice(0, 1), WINDOW + 1)
        self._step = recorded_by_rows(DecodePass(self._model), slots, *steps)
        plain = [self._model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1] for text in texts]
        for rows in {len(texts), min(slots, FEW + 1)}:
            through_slots = self._step(*self._step_inputs(slice(0, rows), 1))
            for found, wanted in zip(through_slots, plain, strict=False):
                must_agree(found, wanted, "its logits there differ from those of its plain forward pass")
        for slot in range(len(texts)):
            self.release(slot)
        logger.info("self-check passed: slots and plain forward agree")


def prompt_scores(token_ids: torch.Tensor, logits: torch.Tensor, sampling: Sampling) -> tuple[Score, ...]:
    """What the model thought of tokens 1, 2, … n - 1 of a prompt (int64[n]), from its logits (float[n, V]).

    Row by row: a log-softmax of the whole would double the memory of the largest tensor there is.
    """
    return tuple(
        score(row.log_softmax(-1), int(token_id), sampling.top_n_tokens or 0)
        for row, token_id in zip(logits[:-1], token_ids[1:], strict=True)
    )


def longest_text(config: Any) -> int | None:
    """The positions a KV row may have before the model would need a sliding window or longer rotary tables.

    None where the config names no bound.
    """
    bounds = [getattr(config, "max_position_embeddings", None)]
    slides = getattr(config, "use_sliding_window", True)
    if slides:
        bounds.append(getattr(config, "sliding_window", None))
    return min((bound for bound in bounds if bound is not None), default=None)
