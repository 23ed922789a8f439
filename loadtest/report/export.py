"""The summary for other programs: summary.json, summary.csv (a line a cell and metric), and vLLM's flat keys.

summary.vllm.jsonl has an object a cell, a line each, as `vllm bench serve --save-result --append-result` writes them:
milliseconds, times of complete requests, rates of the whole cell (Σ tokens / wall). A key is left out where there are
too few observations for it, or nobody counted. A standard deviation is the population's (n) there, and the sample's
(n − 1) in our own files.

Source: vllm-project/vllm@009e6d4a, vllm/benchmarks/serve.py, `calculate_metrics` and `benchmark`.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from loadtest.summary import QUANTILES

VLLM = {"ttft": "ttft_s", "tpot": "tpot_s", "itl": "itl_s", "e2el": "latency_s"}
CELL = ("config", "slots", "concurrency", "input_tokens", "new_tokens", "dataset")
NUMBERS = ("n", "mean", "std", "min", *QUANTILES, "max")


def write(summary: Mapping[str, Any], run: Mapping[str, Any], folder: Path) -> None:
    """summary.json, summary.csv and summary.vllm.jsonl in `folder`. Raises: OSError."""
    content = json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "summary.json").write_text(content + "\n", encoding="utf-8")
    with (folder / "summary.csv").open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(("run", "cell", *CELL, "metric", "unit", *NUMBERS, "ci95_low", "ci95_high"))
        writer.writerows(_rows(summary))
    lines = [json.dumps(each, ensure_ascii=False, allow_nan=False) for each in vllm(summary, run)]
    (folder / "summary.vllm.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _rows(summary: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """An empty field is a number that there isn't."""
    for entry in summary["cells"]:
        cell = (entry["cell"][name] for name in CELL)
        begin = (summary["run"], entry["label"], *cell)
        for name, metric in entry["metrics"].items():
            interval = metric["ci95_of_median"] or metric["ci95_of_mean"] or (None, None)
            yield (*begin, name, metric["unit"], *(metric[number] for number in NUMBERS), *interval)


def vllm(summary: Mapping[str, Any], run: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """One flat object a cell. run: the content of run.json."""
    loop = run.get("open_loop")
    for entry in summary["cells"]:
        totals, complete = entry["totals"], entry["samples"]["complete"]
        read, made, wall_s = totals["input_tokens"], totals["new_tokens"], totals["wall_s"]
        endpoint: Mapping[str, Any] = next((e for e in run["endpoints"] if e["config"] == entry["cell"]["config"]), {})
        flat = {
            "date": run["created"],
            "label": entry["label"],
            "endpoint_type": endpoint.get("protocol"),
            "model_id": (endpoint.get("info") or {}).get("model_id"),
            "num_prompts": entry["samples"]["steady"],
            "request_rate": loop["rate_per_s"] if loop else "inf",
            "burstiness": loop["burstiness"] if loop else 1.0,
            "max_concurrency": entry["cell"]["concurrency"],
            "duration": wall_s,
            "completed": complete,
            "failed": entry["samples"]["failed"],
            "total_input_tokens": read,
            "total_output_tokens": made,
            **_rates(complete, read, made, wall_s),
        }
        for name, metric in VLLM.items():
            flat |= _times(name, entry["metrics"].get(metric))
        yield {key: value for key, value in flat.items() if value is not None}


def _rates(complete: int, read: int | None, made: int, wall_s: float) -> dict[str, float]:
    if wall_s <= 0:
        return {}
    rates = {"request_throughput": complete / wall_s, "output_throughput": made / wall_s}
    return rates if read is None else rates | {"total_token_throughput": (read + made) / wall_s}


def _times(name: str, metric: Mapping[str, Any] | None) -> dict[str, float | None]:
    if metric is None or not metric["n"]:
        return {}
    n, std = metric["n"], metric["std"]
    times = {"mean": metric["mean"], "median": metric["p50"], "std": std and std * math.sqrt((n - 1) / n)}
    times |= {p: metric[p] for p in QUANTILES if p != "p50"}
    return {f"{which}_{name}_ms": None if value is None else value * 1e3 for which, value in times.items()}
