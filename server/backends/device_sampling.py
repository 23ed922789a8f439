"""What the sampler inside a compiled graph can do, and how it is told: three numbers a row, and nothing to remember.

It keeps the `max_topk` likeliest tokens of a row, cuts them to top_k, divides by the temperature, cuts to top_p and
draws. It has no seed, no penalties, and tells no probabilities. Its top_p leaves out the token that crosses the limit,
which transformers keeps; docs/wire.md says so.
Source: huggingface/optimum-neuron v0.4.5, optimum/neuron/models/inference/backend/modules/generation/sampling.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from server.backends.base import Sampling

#: An end-of-sequence token may still be chosen with `ignore_eos`; it ends nothing then.
HONOURED = frozenset({"do_sample", "temperature", "top_k", "top_p", "ignore_eos"})
Parameters = tuple[float, float, float]  # top_k, top_p, temperature
GREEDY: Parameters = (1.0, 1.0, 1.0)
#: Tokens that are cut off get the logit -3000: beyond top_k before the division, where a high temperature brings them
#: back; beyond top_p after it, where a low one can put the others below. Between these, logits down to -30 are safe.
TEMPERATURES = (0.01, 100.0)
SMALLEST_TOP_P = 1e-6  # below any likeliest token's probability, and not zero in float32, which upstream refuses


def ranges(max_topk: int) -> Mapping[str, tuple[float, float]]:
    """The values that the graph takes for what they are."""
    return {"top_k": (1, max_topk), "temperature": TEMPERATURES}


def parameters(sampling: Sampling, max_topk: int) -> Parameters:
    """A row of `sampling_params`. Without top_k the graph draws from all that it keeps; its own "all", -1, would make
    those equally likely.
    """
    if not sampling.do_sample:
        return GREEDY
    top_p = 1.0 if sampling.top_p is None else max(sampling.top_p, SMALLEST_TOP_P)
    return float(sampling.top_k or max_topk), top_p, 1.0 if sampling.temperature is None else sampling.temperature
