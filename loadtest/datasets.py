"""Prompts from a JSONL file: every line is checked before anything is measured, and each is used before any is twice.

A line is an object with `prompt` (a text, or token ids) or `messages`, and how many new tokens it asks for under any of
the names in `NEW_TOKENS`; without one it asks for what the run does. The other fields of a line aren't sent. Blank
lines are nothing.
Source: vllm-project/vllm@237145ea, vllm/benchmarks/datasets (custom: `prompt`, `output_tokens`; shuffled unless told
not to); fw-ai/benchmark, llm_bench/README.md (`prompt` or `messages`, and fields of the request); OpenAI's requests.
"""

from __future__ import annotations

import codecs
import hashlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from loadtest.endpoints.base import Prompt
from loadtest.plan import Asked, Cell

Order = Literal["shuffle", "sequential"]
ORDERS: tuple[Order, ...] = ("shuffle", "sequential")  # AIPerf's words
NEW_TOKENS = ("max_tokens", "max_completion_tokens", "output_tokens")  # OpenAI's two, vLLM's
MOST_NEW_TOKENS = 2**31 - 1
LONGEST_SHOWN = 60  # characters of a bad value


class DatasetError(ValueError):
    """A file that can't be used as prompts; the message names file, line, value and remedy."""


@dataclass(frozen=True, slots=True)
class Line:
    number: int  # in the file, from 1
    prompt: Prompt
    asked: Asked

    @property
    def least_tokens(self) -> int:
        """Prompt and new ones together; of what nobody counted, one."""
        return (self.asked.input_tokens or 1) + self.asked.new_tokens

    @property
    def kind(self) -> str:
        if isinstance(self.prompt, str):
            return "text"
        return "token ids" if isinstance(self.prompt[0], int) else "messages"


@dataclass(frozen=True, slots=True)
class Dataset:
    """A file's lines, in the file's order."""

    name: str  # without its folders
    lines: tuple[Line, ...]
    different: int  # prompts that differ from one another
    not_sent: tuple[str, ...]  # fields that were found and mean nothing to us
    sha256: str

    def first_of_each_kind(self) -> list[Line]:
        first: dict[str, Line] = {}
        for line in self.lines:
            first.setdefault(line.kind, line)
        return list(first.values())

    @property
    def longest(self) -> Line:
        return max(self.lines, key=lambda line: line.least_tokens)


def parse(data: bytes, name: str, new_tokens: int) -> Dataset:
    """new_tokens: what a line asks for that doesn't say.

    Raises: DatasetError naming the first line that can't be used.
    """
    lines = []
    seen: set[bytes] = set()
    fields: set[str] = set()
    for number, raw in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if not raw.strip():
            continue
        try:
            said = _object(raw)
            prompt = _prompt(said)
            seen.add(hashlib.sha256(_bytes(prompt)).digest())
            lines.append(Line(number, prompt, Asked(_length(prompt), _new_tokens(said, new_tokens))))
        except DatasetError as error:
            raise DatasetError(f"{name}, line {number}: {error}") from error
        fields |= said.keys() - {"prompt", "messages", *NEW_TOKENS}
    if not lines:
        raise DatasetError(f'{name} has no lines: each must be an object such as {{"prompt": "…", "max_tokens": 64}}')
    return Dataset(name, tuple(lines), len(seen), tuple(sorted(fields)), hashlib.sha256(data).hexdigest())


def _object(raw: bytes) -> dict[str, Any]:
    try:
        said = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise DatasetError(f"{_shown(raw)} is not JSON ({error}): write one object on each line") from error
    if not isinstance(said, dict):
        raise DatasetError(f'{_shown(raw)} is no object: write {{"prompt": …}} or {{"messages": …}}')
    return said


def _prompt(said: Mapping[str, Any]) -> Prompt:
    prompt, messages = said.get("prompt"), said.get("messages")
    if (prompt is None) == (messages is None):
        which = "both `prompt` and `messages`" if prompt is not None else f"neither among its fields ({_names(said)})"
        raise DatasetError(f"a line has either `prompt` or `messages`, this one {which}: say one of them")
    if messages is not None:
        if _all(messages, _is_message):
            return list(messages)
        raise DatasetError(
            f'messages is {_shown(messages)}; it must be a list such as [{{"role": "user", "content": "…"}}]'
        )
    if isinstance(prompt, str) and prompt:
        return prompt
    if _all(prompt, _is_token_id):
        return list(prompt or ())
    raise DatasetError(f"prompt is {_shown(prompt)}; it must be a text or a list of token ids, and not empty")


def _all(listed: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(listed, list) and bool(listed) and all(map(fits, listed))


def _is_message(said: object) -> bool:
    return isinstance(said, dict) and isinstance(said.get("role"), str)


def _is_token_id(said: object) -> bool:
    return isinstance(said, int) and not isinstance(said, bool) and said >= 0


def _length(prompt: Prompt) -> int | None:
    """Token ids are counted by being there; a text is not."""
    return None if isinstance(prompt, str) or not isinstance(prompt[0], int) else len(prompt)


def _new_tokens(said: Mapping[str, Any], otherwise: int) -> int:
    given = {name: said[name] for name in NEW_TOKENS if said.get(name) is not None}
    for name, value in given.items():
        whole = value.is_integer() if isinstance(value, float) else type(value) is int  # pandas writes 64.0
        if not whole or not 1 <= value <= MOST_NEW_TOKENS:
            raise DatasetError(f"{name} is {_shown(value)}; it must be a whole number from 1 to {MOST_NEW_TOKENS:,}")
    if len(set(given.values())) > 1:
        raise DatasetError(f"{', '.join(f'{n} is {v}' for n, v in given.items())}: they mean the same, say one of them")
    return int(next(iter(given.values()), otherwise))


def _names(said: Mapping[str, Any]) -> str:
    return _shorter(", ".join(said) or "none")


def _bytes(value: object) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError as error:
        raise DatasetError(f"a value can't be sent ({error}): nest it less deeply") from error


def _shown(value: object) -> str:
    return _shorter((value if isinstance(value, bytes) else _bytes(value)).decode("utf-8", "replace"))


def _shorter(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


class DatasetPrompts:
    """Deals a dataset's lines, all of them and then all of them again, in the same order: uses of one line are as far
    apart as they can be.
    """

    def __init__(self, dataset: Dataset, order: Order, seed: int | str) -> None:
        self.dataset = dataset
        self.order: Order = order
        self.drawn = 0
        self._process, self._of = 0, 1
        self._lines: Sequence[Line] = dataset.lines
        if order == "shuffle":
            self._lines = list(dataset.lines)
            random.Random(seed).shuffle(self._lines)  # noqa: S311 - a load, not a secret

    def drawn_for(self, cell: Cell) -> tuple[Prompt, Asked]:
        line = self._lines[(self._process + self.drawn * self._of) % len(self._lines)]
        self.drawn += 1
        return line.prompt, line.asked

    def among(self, process: int, of: int) -> DatasetPrompts:
        """The share of one of several processes that deal by turns, from the same seed: every of-th line."""
        dealt = copy(self)
        dealt._process, dealt._of = process, of
        return dealt

    def repeats(self, requests: int) -> str | None:
        """One sentence where so many requests sent a prompt more than once."""
        return repeats(requests, len(self.dataset.lines), self.dataset.different)

    def said(self) -> dict[str, Any]:
        """What run.json holds: see run.schema.json."""
        return {
            "file": self.dataset.name,
            "sha256": self.dataset.sha256,
            "lines": len(self.dataset.lines),
            "different_prompts": self.dataset.different,
            "not_sent": list(self.dataset.not_sent),
            "order": self.order,
            "drawn": self.drawn,
        }


def notes(dataset: Dataset, order: Order) -> Iterator[str]:
    """What is to be said of a dataset before it is measured with, a clause each."""
    kinds = ", ".join(line.kind for line in dataset.first_of_each_kind())
    how = "shuffled by the seed" if order == "shuffle" else "in the file's order"
    yield f"{dataset.name}: {len(dataset.lines)} line{'s' if len(dataset.lines) != 1 else ''} ({kinds}), {how}"
    if dataset.not_sent:
        fields = _shorter(", ".join(dataset.not_sent))
        yield f"{dataset.name}: fields that are not sent: {fields}; --extra-body lays some over every request"


def repeats(requests: int, lines: int, different_prompts: int) -> str | None:
    """One sentence where a prompt was sent, or may have been sent, more than once; None where none was."""
    if requests <= 1 or (requests <= lines and different_prompts == lines):
        return None
    of = f"{lines} line{'s' if lines != 1 else ''} with {different_prompts} different prompts"
    return f"{requests} requests used {of}: a server that keeps prefixes may answer a repeated prompt from memory"
