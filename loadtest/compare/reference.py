"""A table of figures that others measured: read, checked line by line, and each metric tied to the one of ours that
means the same.

Columns: source, commit, date, model, hardware, cores, batch, metric, unit, input_tokens, new_tokens, value. Commit,
date and cores may be empty; so may input_tokens and new_tokens, of a figure whose source doesn't say them.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

COLUMNS = (
    "source", "commit", "date", "model", "hardware", "cores", "batch", "metric", "unit", "input_tokens", "new_tokens",
    "value",
)  # fmt: skip
UNITS = {"s": ("s", 1.0), "ms": ("s", 1e-3), "tok/s": ("tokens/s", 1.0)}


class TableError(ValueError):
    """The table can't be used; the message names the line, the value and the remedy."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What of ours a reference metric is: a metric of summary.json and its statistic, or why there is none."""

    unit: str
    metric: str | None = None
    statistic: str | None = None  # None: the median over waves, or the mean of fewer than ten
    of_first_token: bool = False
    why_not: str | None = None


_QUOTIENT = "it divides by other tokens than ours: TPOT leaves the first one out, ITL is no quotient at all"
MEANINGS: Mapping[str, Meaning] = {
    "encoding_time": Meaning("s", "encoding_time_s", of_first_token=True),
    "time_to_first_token": Meaning("s", "encoding_time_s", of_first_token=True),
    "time_to_first_token_p50": Meaning("s", "ttft_s", "p50", of_first_token=True),
    "time_to_first_token_p99": Meaning("s", "ttft_s", "p99", of_first_token=True),
    "time_to_first_token_mean": Meaning("s", "ttft_s", "mean", of_first_token=True),
    "end_to_end_latency": Meaning("s", "batch_latency_s"),
    "time_per_output_token_p50": Meaning("s", "tpot_s", "p50"),
    "time_per_output_token_p99": Meaning("s", "tpot_s", "p99"),
    "throughput_input_plus_output": Meaning("tokens/s", "throughput_total_tokens_per_s"),
    "throughput_output_only": Meaning("tokens/s", "throughput_output_tokens_per_s"),
    "inter_token_latency": Meaning("s", why_not=_QUOTIENT),
    "latency_per_token_median": Meaning("s", why_not=_QUOTIENT),
    "latency_per_token_p50_input_plus_output": Meaning("s", why_not=_QUOTIENT),
    "latency_per_token_p99_input_plus_output": Meaning("s", why_not=_QUOTIENT),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `value` and `rounding` in seconds or tokens/s."""

    line: int
    source: str
    commit: str
    date: str
    model: str
    hardware: str
    cores: str
    batch: int
    metric: str
    unit: str  # s | tokens/s
    input_tokens: int | None
    new_tokens: int | None
    value: float
    rounding: float  # half of the last digit that is printed: 0.6 may be 0.55 or 0.65

    @property
    def meaning(self) -> Meaning:
        return MEANINGS[self.metric]

    @property
    def lengths(self) -> str:
        return f"{_or_unknown(self.input_tokens)}→{_or_unknown(self.new_tokens)}"


def read(lines: Iterable[str], name: str) -> list[Row]:
    """name: of the file, for messages. Raises: TableError."""
    reader = csv.DictReader(lines)
    head = tuple(reader.fieldnames or ())
    lacking = [column for column in COLUMNS if column not in head]
    strange = [column for column in head if column not in COLUMNS]
    if lacking or strange:
        said = [f"lacks {', '.join(lacking)}"] * bool(lacking) + [f"has {', '.join(strange)}"] * bool(strange)
        raise TableError(
            f"{name}, line 1 {' and '.join(said)}: its columns must be, with commas between, {', '.join(COLUMNS)}"
        )
    try:
        rows = [_row(raw, name, reader.line_num) for raw in reader]
    except csv.Error as error:
        raise TableError(f"{name}, line {reader.line_num}: {error}; write it as comma-separated values") from error
    if not rows:
        raise TableError(f"{name} has no figure: add a line for each, below the columns' names")
    return rows


def _row(raw: Mapping[str | None, str | None], name: str, line: int) -> Row:
    def refuse(column: str, remedy: str) -> TableError:
        return TableError(f"{name}, line {line}: {column} {raw[column]!r} {remedy}")

    if None in raw or None in raw.values():
        raise TableError(
            f"{name}, line {line} has another number of values than of columns: quote a value with a comma in it"
        )
    text = {column: (raw[column] or "").strip() for column in COLUMNS}
    for column in ("source", "model", "hardware"):
        if not text[column]:
            raise refuse(column, "is empty: say where the figure comes from")
    metric = text["metric"]
    if metric not in MEANINGS:
        raise refuse("metric", f"is none that can be compared: write one of {', '.join(MEANINGS)}")
    unit, factor = UNITS.get(text["unit"], ("", 1.0))
    if unit != MEANINGS[metric].unit:
        fitting = [name for name, (of, _) in UNITS.items() if of == MEANINGS[metric].unit]
        raise refuse("unit", f"is no unit of {metric}: write {' or '.join(fitting)}")

    def tokens(column: str, may_be_empty: bool) -> int | None:
        if not text[column] and may_be_empty:
            return None
        if not (text[column].isascii() and text[column].isdigit()) or int(text[column]) < 1:
            raise refuse(column, "is no whole number from 1 up" + ("; leave it empty if unknown" * may_be_empty))
        return int(text[column])

    try:
        value = float(text["value"])
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise refuse("value", "is no number from 0 up, such as 1.8")
    batch = tokens("batch", may_be_empty=False)
    assert batch is not None
    return Row(
        line=line,
        source=text["source"],
        commit=text["commit"],
        date=text["date"],
        model=text["model"],
        hardware=text["hardware"],
        cores=text["cores"],
        batch=batch,
        metric=metric,
        unit=unit,
        input_tokens=tokens("input_tokens", may_be_empty=True),
        new_tokens=tokens("new_tokens", may_be_empty=True),
        value=value * factor,
        rounding=_half_digit(text["value"]) * factor,
    )


def _half_digit(text: str) -> float:
    """0.05 of `0.6`, 0.5 of `277`."""
    mantissa, _, exponent = text.lower().partition("e")
    return 0.5 * 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


def _or_unknown(tokens: int | None) -> str:
    return "?" if tokens is None else str(tokens)
