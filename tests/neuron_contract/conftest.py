"""Real optimum-neuron models on this CPU: tiny folders made in code, compiled and loaded in a fraction of a second.

Everything here is skipped, and says why, where optimum-neuron is not installed. The stand-ins stay in the process once
a test of this folder has run.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

Compiled = Callable[..., Any]
Right = Callable[[Path, Sequence[int], int], list[int]]


@pytest.fixture(scope="session", autouse=True)
def optimum_neuron() -> Iterator[None]:
    """optimum-neuron's model classes, imported over the stand-ins; torch on one thread, which is three times faster for
    models this small.
    """
    if find_spec("optimum") is None or find_spec("optimum.neuron") is None:
        pytest.skip("optimum-neuron is not installed: pip install 'tokenclock[neuron]' with Python 3.11")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no device, and what torch and transformers will drop one day
        import transformers  # noqa: F401 - looks for torch_xla, so before the stand-ins

        from tests.neuron_contract import absent

        absent.install()
        import optimum.neuron.models.inference.auto_models  # noqa: F401
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def gqa_folder(optimum_neuron: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with two KV heads for its four heads. No pad token, no tokenizer."""
    return write_llama(tmp_path_factory.mktemp("gqa"), kv_heads=2)


@pytest.fixture(scope="session")
def mha_folder(optimum_neuron: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with a KV head for each of its four heads. No pad token, no tokenizer."""
    return write_llama(tmp_path_factory.mktemp("mha"), kv_heads=4)


@pytest.fixture(scope="session")
def demo_folder(optimum_neuron: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration model, with its tokenizer and generation config."""
    from server.demo import write_model

    folder = tmp_path_factory.mktemp("demo")
    write_model(folder)
    return folder


@pytest.fixture(scope="session")
def reference(optimum_neuron: None) -> Callable[[Path], Any]:
    """reference(folder) is transformers' own model of a folder, the oracle of these tests."""
    from transformers import LlamaForCausalLM

    return functools.cache(LlamaForCausalLM.from_pretrained)


@pytest.fixture(scope="session")
def right(reference: Callable[[Path], Any]) -> Right:
    """right(folder, prompt, count) is the greedy text of transformers, through EOS if it comes."""
    import torch

    @functools.cache
    def tokens(folder: Path, prompt: tuple[int, ...], count: int) -> list[int]:
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(count):
                ids.append(int(reference(folder)(torch.tensor([ids])).logits[0, -1].argmax()))
        return ids[len(prompt) :]

    return lambda folder, prompt, count: list(tokens(folder, tuple(prompt), count))


@pytest.fixture(scope="session")
def compiled(optimum_neuron: None) -> Compiled:
    """compiled(folder, ...) is a new, ready LlamaNxDModelForCausalLM with a KV cache of zeros (about 0.2 s).

    `more` are further fields of NxDNeuronConfig.
    """
    from optimum.neuron.models.inference.backend.config import NxDNeuronConfig
    from transformers import AutoConfig

    from tests.neuron_contract.compiled import build

    def ready(
        folder: Path,
        batch_size: int = 4,
        sequence_length: int = 64,
        max_context_length: int = 32,
        on_device_sampling: bool = True,
        **more: Any,
    ) -> Any:
        fields = {
            "batch_size": batch_size,
            "sequence_length": sequence_length,
            "max_context_length": max_context_length,
            "on_device_sampling": on_device_sampling,
            "continuous_batching": batch_size > 1,
            "fused_qkv": True,
            "torch_dtype": "float32",
            "target": "trn1",
        }
        return build(AutoConfig.from_pretrained(folder), NxDNeuronConfig(**fields | more), folder)

    return ready


@pytest.fixture
def inferentia(optimum_neuron: None) -> Iterator[None]:
    """optimum-neuron believes it is on an inf2 during the test, so that export and from_pretrained work."""
    from tests.neuron_contract import machine

    with machine.inferentia():
        yield


def write_llama(folder: Path, kv_heads: int) -> Path:
    """A Llama of random weights wide enough that its greedy text varies: float32, 320 tokens (upstream wants 256)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder
