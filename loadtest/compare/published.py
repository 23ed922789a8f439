"""Measured beside published, where both mean the same; and of everything else why it isn't there.

A figure is compared where metric, definition, input and new tokens, and batch agree. The two throughputs are two
metrics; the two grids meet in no cell but those that both have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.compare.reference import Row

OUR_ROUTER = "tokenclock"  # what our own server says it is, which prefills one request after the other


@dataclass(frozen=True, slots=True)
class Selection:
    """A named part of the table of published figures, and what must be known about it."""

    title: str
    model: str
    commit: str
    cores: str
    caveats: tuple[str, ...]

    def rows(self, table: Sequence[Row]) -> list[Row]:
        return [row for row in table if (row.model, row.commit, row.cores) == (self.model, self.commit, self.cores)]


_ONCE = (
    "each figure is of one run, without repetition, spread or warm-up of its own, and rounded to a decimal of a second"
)
_NO_HTTP = (
    "it was measured around `generate()` in one process: no HTTP, queue, tokenizer or streaming; ours has all of them"
)
_ONE_BATCH = "the four prompts of T were identical and prefilled as one batch"
_DOUBTFUL = (
    "its encoding times are doubtful: at batch 1 the 13B model is faster than the 7B at 256 and 512 tokens, and AWS's "
    "own time to the first of 128 tokens was 26 to 28 ms three months later; don't tune a server to them"
)
_TOTAL = "its throughput counts input and output tokens; the one of output tokens alone is another figure"
_PAGE = (_ONCE, _NO_HTTP, _ONE_BATCH, _DOUBTFUL, _TOTAL)
_BLOG = (
    _ONCE,
    _NO_HTTP,
    _ONE_BATCH,
    "its authors replaced these figures by those of the page two months later (llama2-…-inf2), which are faster",
    _TOTAL,
)


def _page(model: str) -> Selection:
    title = f"{model} on inf2.48xlarge, Hugging Face's page of January 2024"
    return Selection(title, model, "optimum-neuron@27091837", "24", _PAGE)


def _blog(model: str) -> Selection:
    title = f"{model} on inf2.48xlarge, Hugging Face's blog of November 2023"
    return Selection(title, model, "huggingface/blog@99050d02", "24", _BLOG)


SELECTIONS: Mapping[str, Selection] = {
    "llama2-7b-inf2": _page("Llama-2-7B"),
    "llama2-13b-inf2": _page("Llama-2-13B"),
    "llama2-7b-inf2-blog": _blog("Llama-2-7B"),
    "llama2-13b-inf2-blog": _blog("Llama-2-13B"),
}


@dataclass(frozen=True, slots=True)
class Beside:
    """A measured figure beside a reference's; seconds or tokens/s."""

    row: Row
    cell: str
    metric: str
    statistic: str  # p50 | p99 | mean
    n: int
    value: float
    interval: tuple[float, float] | None  # 95 %, of a median

    @property
    def ratio(self) -> float:
        """Measured over reference."""
        return self.value / self.row.value

    @property
    def ratio_between(self) -> tuple[float, float]:
        """What the interval and the reference's rounding leave open."""
        low, high = self.interval or (self.value, self.value)
        least = self.row.value - self.row.rounding
        return low / (self.row.value + self.row.rounding), high / least if least > 0 else float("inf")


@dataclass(frozen=True, slots=True)
class LeftOut:
    what: str  # a reference's figure, or a measured cell
    why: str


def beside(
    rows: Sequence[Row], run: Mapping[str, Any], summary: Mapping[str, Any], batches: bool
) -> tuple[list[Beside], list[LeftOut]]:
    """Every row finds its cell, or the reason why it has none; every measured cell without a row is named, too.

    run, summary: run.json and summary.json. batches: the reference's figures are of batches that begin together, so
    only waves compare.
    """
    found: list[Beside] = []
    left_out: list[LeftOut] = []
    for row in rows:
        one = _place(row, run, summary, batches)
        if isinstance(one, Beside):
            found.append(one)
        else:
            left_out.append(LeftOut(f"{row.metric} at batch {row.batch}, {row.lengths}", one))
    order = [entry["label"] for entry in summary["cells"]]
    return sorted(found, key=lambda one: order.index(one.cell)), [*left_out, *_unpublished(rows, summary)]


def _place(row: Row, run: Mapping[str, Any], summary: Mapping[str, Any], batches: bool) -> Beside | str:
    meaning = row.meaning
    if meaning.metric is None:
        return f"another definition: {meaning.why_not}"
    if row.input_tokens is None or row.new_tokens is None:
        return "its source doesn't say how many tokens went in or came out"
    if row.value == 0:
        return "it is printed as 0, too coarse for a ratio"
    alike = [
        entry
        for entry in summary["cells"]
        if (entry["cell"]["input_tokens"], entry["cell"]["new_tokens"]) == (row.input_tokens, row.new_tokens)
    ]
    if not alike:
        return f"the run has no cell of {row.lengths} tokens"
    batch = [entry for entry in alike if entry["cell"]["concurrency"] == row.batch]
    if not batch:
        had = sorted({entry["cell"]["concurrency"] for entry in alike})
        return f"another batch: the run had {', '.join(map(str, had))} in flight"
    (entry, *others) = batch
    why = f"the run has {1 + len(others)} such cells" if others else _unfit(row, entry, run, batches)
    return why or _figure(row, entry)


def _unfit(row: Row, entry: Mapping[str, Any], run: Mapping[str, Any], batches: bool) -> str | None:
    slots = entry["cell"]["slots"]
    if slots is not None and slots != row.batch:
        return f"another batch: the endpoint served {slots} slots, and steps of {slots} cost others than of {row.batch}"
    if run.get("open_loop"):
        return "an open loop's load isn't a batch: its requests come when they come"
    if batches and entry["waves"] is None:
        return "not a batch: requests of a closed loop don't begin together; measure with --plan"
    if entry["off_plan"]:
        return f"off plan: {'; '.join(entry['off_plan'])}"
    if batches and row.meaning.of_first_token and row.batch > 1 and _one_by_one(entry, run):
        return "another definition: the endpoint prefills one prompt after the other, the reference all as one batch"
    return None


def _one_by_one(entry: Mapping[str, Any], run: Mapping[str, Any]) -> bool:
    """Whether the endpoint is known to. Of a stranger's nothing is known."""
    served = [each for each in run["endpoints"] if each["config"] in (None, entry["cell"]["config"])]
    infos = [each["info"] or {} for each in served]
    return any(OUR_ROUTER in (info.get("router"), info.get("owned_by")) for info in infos)


def _figure(row: Row, entry: Mapping[str, Any]) -> Beside | str:
    meaning = row.meaning
    assert meaning.metric is not None
    metric = entry["metrics"].get(meaning.metric)
    if metric is None or not metric["n"]:
        remedy = "; it is a figure of waves: measure with --plan" if entry["waves"] is None else ""
        return f"the run has no {meaning.metric} there{remedy}"
    statistic = meaning.statistic or ("p50" if metric["p50"] is not None else "mean")
    if metric[statistic] is None:
        return f"{metric['n']} observations are too few for a {statistic}"
    low_high = metric["ci95_of_median"] if statistic == "p50" else None
    interval = (low_high[0], low_high[1]) if low_high else None
    return Beside(row, entry["label"], meaning.metric, statistic, metric["n"], metric[statistic], interval)


def _unpublished(rows: Sequence[Row], summary: Mapping[str, Any]) -> Iterator[LeftOut]:
    lengths = {(row.input_tokens, row.new_tokens) for row in rows}
    for entry in summary["cells"]:
        cell = entry["cell"]
        if (cell["input_tokens"], cell["new_tokens"]) not in lengths:
            why = "the reference has no figure of these lengths; none is derived from others"
            if summary["plan"] == "to-1024" and cell["input_tokens"] in (512, 768):
                why = (
                    "the page's own grid goes on from 256 input tokens only (plan `published`); the grids are not mixed"
                )
            yield LeftOut(f"measured {entry['label']}", why)
