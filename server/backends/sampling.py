"""Host-side sampling: transformers' own logits processors, one list and one random generator per slot.

The order is that of `GenerationMixin._get_logits_processor`: penalties, suppression, temperature, top-k, top-p. So a
request gives the tokens that `generate` gives with the same settings.
Source: huggingface/transformers v4.57.6, src/transformers/generation/utils.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from server.backends.base import Sampling, Step

HONOURED = frozenset({"do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "seed", "ignore_eos"})


class Sampler:
    """Chooses the tokens of one request.

    `suppressed` are token ids the model must never emit (its generation config's `suppress_tokens`), `eos` those that
    end a text.
    """

    def __init__(self, sampling: Sampling, suppressed: Sequence[int], eos: Sequence[int]) -> None:
        processors = LogitsProcessorList()
        if sampling.repetition_penalty is not None:
            processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        never = sorted({*suppressed, *(eos if sampling.ignore_eos else ())})
        if never:
            processors.append(SuppressTokensLogitsProcessor(never))
        if sampling.do_sample:
            if sampling.temperature is not None:
                processors.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k is not None:
                processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p is not None:
                processors.append(TopPLogitsWarper(sampling.top_p))
        self._processors = processors
        self._generator: torch.Generator | None = None
        if sampling.do_sample:
            self._generator = torch.Generator()
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed)

    def choose(self, token_ids: torch.Tensor, logits: torch.Tensor, logprobs: torch.Tensor) -> Step:
        """The next token after `token_ids` (int64[1, n]), from `logits` (float[1, V]).

        `logprobs` (float[1, V]) is log_softmax of the same logits: what the chosen token's `logprob` is read from.
        """
        scores = self._processors(token_ids, logits)
        if self._generator is None:
            token_id = int(scores.argmax(dim=-1))
        else:
            probabilities = scores.softmax(dim=-1)
            if not probabilities.isfinite().all():  # a model that overflowed: its request must not end everybody's
                probabilities = torch.ones_like(scores)
            token_id = int(torch.multinomial(probabilities, 1, generator=self._generator))
        return Step(token_id, float(logprobs[0, token_id]))
