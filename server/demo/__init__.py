"""The demonstration model: a small Llama with seeded random weights, made here on first use, without a hub.

It says nothing sensible. It costs what a real decoder costs, in the same places: tokenizer, prefill, one forward pass a
step, KV rows, sampling, detokenization. The tokenizer is a byte-level BPE trained on `corpus.txt` beside this file. Ids
that are not text on their own (single bytes above 127, control characters, `<s>`, `<pad>`) can be read but are never
emitted: the generation config suppresses them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from server.errors import ModelError

CORPUS = Path(__file__).with_name("corpus.txt")
VOCABULARY = 1024  # at most; the corpus has merges for 947
SHAPE = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 4096,
    "initializer_range": 0.08,  # wide enough that the next token depends on the text so far
}
SEED = 20231107
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def ensure_demo_model() -> Path:
    """The folder of the demonstration model, made if it isn't there yet (a few seconds).

    It lies in `$XDG_CACHE_HOME/tokenclock` (~/.cache/tokenclock), named after its recipe, so that a new recipe makes a
    new folder. Two processes may race for it: each writes a folder of its own and the first rename wins.
    """
    recipe = hashlib.sha256(Path(__file__).read_bytes() + CORPUS.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tokenclock"
    folder = cache / f"demo-llama-{recipe}"
    if not folder.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            part = Path(tempfile.mkdtemp(dir=cache, prefix="making-"))
        except OSError as error:
            raise ModelError(
                f"{cache} can't hold the demonstration model: {error.strerror}; set XDG_CACHE_HOME to a folder that can"
            ) from error
        try:
            write_model(part)
            part.rename(folder)
        except OSError:
            if not folder.exists():
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def write_model(folder: Path) -> None:
    """Write config, generation config, weights (safetensors) and tokenizer, as any hub model has them."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        **SHAPE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=unreadable(tokenizer),
    )
    model.save_pretrained(folder, safe_serialization=True)


def train_tokenizer() -> Any:
    """A byte-level BPE over the corpus: any text can be read, and `<s>` begins it, as Llama's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train(
        [str(CORPUS)],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<s>", "</s>", "<pad>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=CHAT_TEMPLATE
    )


def unreadable(tokenizer: Any) -> list[int]:
    """Ids that are no readable text on their own: what the model must not emit. `</s>` stays."""
    ids = range(len(tokenizer))
    texts = {token_id: tokenizer.decode([token_id]) for token_id in ids}
    return [
        token_id
        for token_id in ids
        if token_id != tokenizer.eos_token_id
        and (
            token_id in tokenizer.all_special_ids
            or not texts[token_id].replace("\n", " ").isprintable()
            or "\ufffd" in texts[token_id]
        )
    ]
