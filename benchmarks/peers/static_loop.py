"""A hand-written loop over transformers' StaticCache: what a model costs without a server around it.

    python -m benchmarks.peers.static_loop MODEL THREADS NEW_TOKENS

A line of JSON in is the token ids of a batch, all of one length; a line out is {"first_s", "whole_s", "tokens"}:
seconds to the first new token of every row and to the last, and what was chosen. Greedy; the prompts go through in one
pass; the cache is as long as the texts become, and its mask is made before the clock starts.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, StaticCache


@torch.inference_mode()
def generate(model: Any, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
    token_ids = torch.tensor(prompts)
    used, total = token_ids.shape[1], token_ids.shape[1] + new_tokens
    cache = StaticCache(config=model.config, max_cache_len=total)
    unseen = torch.full((total, total), torch.finfo(torch.float32).min).triu(1)
    mask = unseen.expand(len(prompts), 1, total, total)
    chosen = []
    began_s = time.perf_counter()
    at = torch.arange(used)
    for new in range(new_tokens):
        logits = model(
            input_ids=token_ids,
            position_ids=at.unsqueeze(0),
            attention_mask=mask[:, :, at],
            past_key_values=cache,
            cache_position=at,
            logits_to_keep=1,
        ).logits
        token_ids = logits[:, -1].argmax(-1, keepdim=True)
        chosen.append(token_ids.flatten().tolist())
        at = torch.tensor([used + new])
        if new == 0:
            first_s = time.perf_counter() - began_s
    whole_s = time.perf_counter() - began_s
    return {"first_s": first_s, "whole_s": whole_s, "tokens": list(zip(*chosen, strict=True))}


def main() -> None:
    path, threads, new_tokens = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    for line in sys.stdin:
        print(json.dumps(generate(model, json.loads(line), int(new_tokens))), flush=True)


if __name__ == "__main__":
    main()
