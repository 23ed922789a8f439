"""Llamas of random weights, with the demonstration model's tokenizer, that any server can be asked the same texts of.

The ids that the demonstration model mustn't emit are out of reach, `</s>` among them: every text has its full length,
and no server has to suppress anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from server.demo import SHAPE, train_tokenizer, unreadable

MODELS = {
    "demo": SHAPE,
    "large": SHAPE
    | {
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
}


def write_model(folder: Path, shape: dict[str, Any]) -> int:
    """Returns its number of parameters."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(folder)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=False, **special, **shape))
    with torch.no_grad():  # a logit of 0 is never the largest
        model.lm_head.weight[[*unreadable(tokenizer), tokenizer.eos_token_id]] = 0.0
    model.generation_config = GenerationConfig(**special)
    model.save_pretrained(folder)
    return int(model.num_parameters())
