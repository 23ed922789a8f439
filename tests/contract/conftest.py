"""A served model whose every token is known beforehand, so that an answer can be written down by hand.

The tokenizer spells prompts byte by byte; the backend says `Hello`, ` world`, `!`, end of text, over and over, or, to a
prompt that begins with `é`, the two bytes of `é` and the end of text. A step's log probabilities are fixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import httpx
import pytest
from tokenizers import Tokenizer as Bpe
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from server.backends.base import Limits, Sampling, Score, Step
from server.backends.sampling import HONOURED
from server.settings import Settings
from server.tokenizer import Tokenizer
from tests.server.conftest import serve  # noqa: F401

WORDS = ["<s>", "</s>", "Hello", "Ġworld", "!", "Ġagain"]
FIRST_BYTE = len(WORDS)  # ids of single bytes: 6 + the byte's place in the sorted byte-level alphabet
EOS = 1
LOGPROBS = {"Hello": -0.5, "Ġworld": -0.25, "!": -1.0, "</s>": -0.125}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def spelled() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: place for place, word in enumerate([*WORDS, *(a for a in alphabet if a not in WORDS)])}
    bpe = Bpe(models.BPE(vocab=vocabulary, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", chat_template=CHAT_TEMPLATE)


@dataclass
class Text:
    script: Sequence[int]
    sampling: Sampling
    said: int = 0


@dataclass
class KnownBackend:
    """Says its script. The likeliest tokens it tells of are the script's own token and ` again` at -2."""

    tokenizer: PreTrainedTokenizerFast
    limits: Limits = field(default_factory=lambda: Limits(4, 63, 64, 262, HONOURED))
    live: dict[int, Text] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=lambda: {"name": "known"})

    def prefill(self, slot: int, token_ids: Sequence[int], sampling: Sampling) -> Step:
        e_acute = self.tokenizer.encode("é", add_special_tokens=False)
        script = [2, 3, 4, EOS] if e_acute[0] not in token_ids else [*e_acute, EOS]
        if sampling.ignore_eos:
            script.remove(EOS)
        self.live[slot] = Text(script, sampling)
        step = self.step(slot)
        prompt = tuple(Score(-3.0, self.top(token, sampling)) for token in token_ids[1:])
        return Step(step.token_id, step.score, prompt if sampling.prompt_logprobs else ())

    def decode(self) -> Mapping[int, Step]:
        return {slot: self.step(slot) for slot in self.live}

    def release(self, slot: int) -> None:
        del self.live[slot]

    def step(self, slot: int) -> Step:
        text = self.live[slot]
        token_id = text.script[text.said % len(text.script)]
        text.said += 1
        logprob = LOGPROBS.get(self.tokenizer.convert_ids_to_tokens(token_id), -4.0)
        return Step(token_id, Score(logprob, self.top(token_id, text.sampling)))

    def top(self, token_id: int, sampling: Sampling) -> tuple[tuple[int, float], ...]:
        logprob = LOGPROBS.get(self.tokenizer.convert_ids_to_tokens(token_id), -1.5)
        return ((token_id, logprob), (5, -2.0))[: sampling.top_n_tokens or 0]


@pytest.fixture(scope="session")
def known(serve) -> Iterator[httpx.Client]:  # noqa: F811
    """The known model, served as `known`."""
    tokenizer = spelled()

    def load(_: Settings) -> tuple[KnownBackend, Tokenizer]:
        return KnownBackend(tokenizer), Tokenizer(tokenizer, [EOS])

    with serve(Settings(served_model_name="known", max_concurrent_requests=8), load) as client:
        yield client
