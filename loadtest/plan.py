"""A plan says which cells are measured: how many users, how many tokens in, how many out, and how often.

The two grids are the published page's two readings and must never be mixed (see `ENCODING` and `PLANS`).

Source: huggingface/optimum-neuron@27091837, docs/source/benchmarks/inferentia-llama2.mdx and its plotting script.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

INPUT_TOKENS = (256, 512, 768)


class PlanError(ValueError):
    """A plan that does not exist or cannot be run; the message names the value and the remedy."""


@dataclass(frozen=True, slots=True)
class Config:
    """One way of serving the model, in the page's words: L is the latency, T the throughput configuration."""

    name: str
    slots: int  # compiled batch size the server is started with
    concurrency: int  # requests in flight


CONFIGS = {
    "L": Config("L", slots=1, concurrency=1),
    "T": Config("T", slots=4, concurrency=4),
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What one request asks for."""

    input_tokens: int | None  # None where nobody counted the prompt
    new_tokens: int


NAMES = ("config", "concurrency", "input_tokens", "new_tokens")  # what tells one cell of a run from another


@dataclass(frozen=True, slots=True)
class Cell:
    """One measured point. `wave` is counted from 0 within the cell and its phase; None outside waves."""

    config: str | None
    slots: int | None  # what the endpoint says it serves; None where it does not say
    concurrency: int
    input_tokens: int | None  # of every request; both None where each asks for its own, as a dataset's do
    new_tokens: int | None
    wave: int | None = None
    dataset: str | None = None  # the file's name

    def named(self) -> dict[str, str | int | None]:
        """What run.json calls it by: its NAMES."""
        return {name: getattr(self, name) for name in NAMES}

    def demands(self, own: Asked | None) -> Asked:
        """What a request asks for: its own, or what the cell says."""
        if own is not None:
            return own
        assert self.new_tokens is not None, "a request says what its cell doesn't"
        return Asked(self.input_tokens, self.new_tokens)

    @property
    def label(self) -> str:
        """`T 256→768`; `4 users 256→768` where no configuration is named; `4 users, dataset chat.jsonl`."""
        who = self.config or f"{self.concurrency} user{'s' if self.concurrency != 1 else ''}"
        return f"{who}, dataset {self.dataset}" if self.dataset else f"{who} {self.input_tokens}→{self.new_tokens}"

    def in_wave(self, wave: int | None) -> Cell:
        return replace(self, wave=wave)


@dataclass(frozen=True, slots=True)
class Plan:
    """A named grid, measured in waves."""

    name: str
    encoding: tuple[tuple[int, int], ...]  # (input_tokens, new_tokens): encoding time is read here
    generation: tuple[tuple[int, int], ...]  # latency and throughput are read here

    def cells(self, config: Config, slots: int | None) -> Iterator[Cell]:
        """The cells of one configuration, in the order they are measured."""
        for input_tokens, new_tokens in self.encoding + self.generation:
            yield Cell(config.name, slots, config.concurrency, input_tokens, new_tokens)

    @property
    def max_total_tokens(self) -> int:
        """The longest request: prompt and new tokens together, which the endpoint must admit."""
        return max(input_tokens + new_tokens for input_tokens, new_tokens in self.encoding + self.generation)


ENCODING = tuple((n, 1) for n in INPUT_TOKENS)

PLANS = {
    "published": Plan("published", ENCODING, tuple((256, m) for m in (256, 512, 768))),
    "to-1024": Plan("to-1024", ENCODING, tuple((n, 1024 - n) for n in INPUT_TOKENS)),
}


def named(name: str) -> Plan:
    """Raises: PlanError where there is no such plan."""
    if name not in PLANS:
        raise PlanError(f"there is no plan {name!r}: choose {' or '.join(PLANS)}")
    return PLANS[name]
