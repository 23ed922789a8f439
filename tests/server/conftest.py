"""Models made in code, and an app served for real in a thread of the test process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from server.app import create_app
from server.backends.base import Backend
from server.demo import write_model
from server.lifecycle import Server, patient
from server.loading import load
from server.settings import Settings
from server.tokenizer import Tokenizer

Loader = Callable[[Settings], tuple[Backend, Tokenizer]]


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration model: every token is readable on its own."""
    folder = tmp_path_factory.mktemp("demo")
    write_model(folder)
    return folder


@pytest.fixture(scope="session")
def splitting_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose tokens are single bytes, so most characters need several of them; grouped KV heads, two EOS ids."""
    import torch
    from tokenizers import Tokenizer as Bpe
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("splitting")
    vocabulary = {"<s>": 0, "</s>": 1, "<|end|>": 2}
    vocabulary |= {symbol: i + 3 for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bpe = Bpe(models.BPE(vocab=vocabulary, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", additional_special_tokens=["<|end|>"]
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=[1, 2])
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[httpx.Client]]:
    """serve(settings, loader) is a context that runs the app on a free port and gives a client of it, once it's
    ready.
    """

    @contextmanager
    def running(settings: Settings, loader: Loader = load, wait: bool = True) -> Iterator[httpx.Client]:
        app = create_app(settings, loader)
        listener = socket.create_server(("127.0.0.1", 0))
        server = Server(
            uvicorn.Config(app, http=patient(settings.read_timeout_s), ws="none", log_config=None),
            app.state.service,
            settings.grace_s,
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=60) as client:
                while wait and client.get("/health").status_code != 200:
                    threading.Event().wait(0.05)
                yield client
        finally:
            server.should_exit = True
            thread.join()

    return running


@pytest.fixture(scope="session")
def demo(serve: Any, demo_folder: Path) -> Iterator[httpx.Client]:
    """The demonstration model, served."""
    with serve(Settings(model=str(demo_folder), slots=4, max_total_tokens=512, threads=1)) as client:
        yield client
