"""Run against run, and run against published: `tokenclock compare`.

`--json` prints one object:

```
{"schema": 1, "a": ["folder", ...], "b": ["folder", ...], "margin": 0.05, "within_run": false,
 "differing": ["transport: gevent in A; httpx in B"], "doubts": ["sentence", ...],
 "cells_left_out": [{"cell": "T 256→768", "why"}],
 "measures_left_out": [{"cell": "T 256→16", "measure": "itl_p99", "why"}],
 "differences": [{"cell", "measure": "ttft_p50", "unit", "a", "b", "change": 0.021, "ci95": [0.004, 0.038] | null,
                  "of": "runs" | "blocks", "n": [5, 5], "verdict": "worse", "why" | null}],
 "gate": [{"rule": "ttft_p50 > 5%", "cell", "p_value" | null, "allowed", "fired": false}],
 "not_held": [{"rule": "tpot_p50 > 5%", "cell": "T 256→1", "why"}]}
```
`a` and `b` are in seconds or a second, `change` and `ci95` shares of B's figure; what is infinite is null. With
`--published` or `--reference`:

```
{"schema": 1, "run": "folder", "reference": "title", "caveats": ["sentence", ...],
 "compared": [{"cell", "metric", "statistic", "n", "unit", "measured", "ci95" | null, "reference_metric", "reference",
               "rounding", "ratio", "ratio_between": [low, high], "source", "commit", "date", "model", "hardware"}],
 "left_out": [{"what", "why"}]}
```
"""
