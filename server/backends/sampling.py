"""Host-side sampling: transformers' own logits processors, one list and one random generator per slot.

The order is that of `GenerationMixin._get_logits_processor`: penalties, temperature, top-k, top-p, typical. So a
request gives the tokens that `generate` gives with the same settings. OpenAI's two additive penalties are not among
transformers' processors; they are here. So is suppression, which transformers' own looks up anew for every token: it
comes first, since no penalty lifts what is impossible.
Source: huggingface/transformers v4.57.6, src/transformers/generation/utils.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.generation.logits_process import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from server.backends.base import Sampling, Score, Step

HONOURED = frozenset(Sampling.__dataclass_fields__)


class AdditivePenalties(LogitsProcessor):  # type: ignore[misc]  # transformers is Any to mypy
    """logit[t] -= count(t) * frequency + (count(t) > 0) * presence, counted over the generated tokens alone.

    Source: OpenAI's API reference, "Frequency and presence penalties".
    """

    def __init__(self, frequency: float, presence: float, prompt_tokens: int) -> None:
        self._frequency, self._presence, self._prompt_tokens = frequency, presence, prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """int64[1, n], float[1, V] -> float[1, V]"""
        counts = torch.bincount(input_ids[0, self._prompt_tokens :], minlength=scores.shape[-1]).to(scores.dtype)
        return scores - self._frequency * counts - self._presence * (counts > 0)


class Sampler:
    """Chooses the tokens of one request.

    `suppressed` are token ids the model must never emit (its generation config's `suppress_tokens`), `eos` those that
    end a text.
    """

    def __init__(self, sampling: Sampling, prompt_tokens: int, suppressed: Sequence[int], eos: Sequence[int]) -> None:
        self._top_n = sampling.top_n_tokens or 0
        self._never = {*suppressed, *(eos if sampling.ignore_eos else ())}
        self._forbidden: torch.Tensor | None = None  # bool[V], as soon as V is known
        processors = LogitsProcessorList()
        if sampling.repetition_penalty is not None:
            processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        frequency, presence = sampling.frequency_penalty or 0.0, sampling.presence_penalty or 0.0
        if frequency or presence:
            processors.append(AdditivePenalties(frequency, presence, prompt_tokens))
        if sampling.min_new_tokens and eos:
            processors.append(
                MinNewTokensLengthLogitsProcessor(prompt_tokens, sampling.min_new_tokens, list(eos), device="cpu")
            )
        if sampling.do_sample:
            if sampling.temperature is not None:
                processors.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k is not None:
                processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p is not None:
                processors.append(TopPLogitsWarper(sampling.top_p))
            if sampling.typical_p is not None:
                processors.append(TypicalLogitsWarper(sampling.typical_p))
        self._processors = processors
        self._generator: torch.Generator | None = None
        if sampling.do_sample:
            self._generator = torch.Generator()
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed)

    @property
    def takes_likeliest(self) -> bool:
        """Its token is the likeliest of those it may emit, whatever came before, and no other is told."""
        return not self._processors and self._generator is None and not self._top_n

    def choose(self, token_ids: torch.Tensor, logits: torch.Tensor, logprobs: torch.Tensor) -> Step:
        """The next token after `token_ids` (int64[1, n]), from `logits` (float[1, V]).

        `logprobs` (float[1, V]) is log_softmax of the same logits: what the chosen token's `logprob` is read from.
        """
        scores = self._processors(token_ids, self.possible(logits))
        if self._generator is None:
            token_id = int(scores.argmax(dim=-1))
        else:
            probabilities = scores.softmax(dim=-1)
            if not probabilities.isfinite().all():  # a model that overflowed: its request must not end everybody's
                probabilities = torch.ones_like(scores)
            token_id = int(torch.multinomial(probabilities, 1, generator=self._generator))
        return Step(token_id, score(logprobs[0], token_id, self._top_n))

    def possible(self, logits: torch.Tensor) -> torch.Tensor:
        """float[1, V], -inf where a token must never be emitted."""
        if not self._never:
            return logits
        if self._forbidden is None:
            ids = torch.arange(logits.shape[-1])  # a tokenizer may have ids that its model has no logit for
            self._forbidden = torch.isin(ids, torch.tensor(sorted(self._never)))
        return logits.masked_fill(self._forbidden, -torch.inf)


def likeliest(samplers: Sequence[Sampler], logits: torch.Tensor, logprobs: torch.Tensor) -> list[Step]:
    """What `choose` gives for each row of float[n, V], at once: for samplers that take the likeliest."""
    if not samplers:
        return []
    ids = torch.cat([each.possible(row) for each, row in zip(samplers, logits.split(1), strict=True)]).argmax(-1)
    thought = logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    return [Step(token_id, Score(logprob)) for token_id, logprob in zip(ids.tolist(), thought.tolist(), strict=True)]


def score(logprobs: torch.Tensor, token_id: int, top_n: int) -> Score:
    """What the model thought (float[V]) of a token, and of the `top_n` likeliest."""
    top: tuple[tuple[int, float], ...] = ()
    if top_n:
        values, ids = logprobs.topk(min(top_n, len(logprobs)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return Score(float(logprobs[token_id]), top)
