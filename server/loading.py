"""From settings to a backend that is ready and its tokenizer: model found, machine checked, weights loaded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from server.backends.base import Backend
from server.check import Finding, blocking, findings_for_neuron
from server.errors import ModelError
from server.machine import Machine, read
from server.model import COMPILED, locate
from server.settings import Settings
from server.tokenizer import Tokenizer, first_line

SLOTS = 4  # on the CPU, where nothing is compiled
MAX_TOTAL_TOKENS = 2048


def load(settings: Settings, look: Callable[[], Machine] = read) -> tuple[Backend, Tokenizer]:
    """The backend and tokenizer the settings name. Blocks while weights load. `look` tells what machine this is.

    Raises: ModelError.
    """
    return _neuron(settings, look()) if settings.backend == "neuron" else _cpu(settings)


def _cpu(settings: Settings) -> tuple[Backend, Tokenizer]:
    model = locate(settings.model) if settings.model else None
    if model is not None and (Path(model) / COMPILED).is_file():
        raise ModelError(f"{model} is compiled for Neuron, which a CPU can't run: say --backend neuron on its machine")
    from server.backends.transformers_cpu import TransformersBackend
    from server.demo import ensure_demo_model

    model = model or str(ensure_demo_model())
    tokenizer = Tokenizer.load(model)
    slots, length = settings.slots or SLOTS, settings.max_total_tokens or MAX_TOTAL_TOKENS
    require_room(settings, slots)
    return TransformersBackend.load(model, slots, length, settings.threads, tokenizer.eos_token_ids), tokenizer


def _neuron(settings: Settings, machine: Machine) -> tuple[Backend, Tokenizer]:
    assert settings.model is not None, "the settings make sure of it"
    model = locate(settings.model)
    if not Path(model).is_dir():
        require(findings_for_neuron(machine))  # before gigabytes are fetched
        model = fetched(model)
    require(findings_for_neuron(machine, Path(model)))
    made = json.loads((Path(model) / COMPILED).read_text(encoding="utf-8"))
    for name, key in (("slots", "batch_size"), ("max_total_tokens", "sequence_length")):
        if (asked := getattr(settings, name)) not in (None, made[key]):
            option = name.replace("_", "-")
            raise ModelError(
                f"{model} is compiled for {made[key]} {option.replace('-', ' ')}, --{option} {asked} asks for others: "
                "leave the option out, or name the export that has them"
            )
    require_room(settings, made["batch_size"])
    from server.backends.neuron import NeuronBackend

    tokenizer = Tokenizer.load(model)
    return NeuronBackend.load(model, tokenizer.eos_token_ids), tokenizer


def require_room(settings: Settings, slots: int) -> None:
    """Raises: ModelError where so many slots could never be filled."""
    try:
        settings.require_room(slots)
    except ValueError as error:
        raise ModelError(str(error)) from error


def require(findings: Iterable[Finding]) -> None:
    """Raises: ModelError where one of them is in the way."""
    if problem := blocking(findings):
        raise ModelError(problem)


def fetched(model: str) -> str:
    """The folder of an export that lies on the hub.

    Raises: ModelError.
    """
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(model)
    except Exception as error:  # the hub client, its HTTP library and the file system each raise their own kind
        raise ModelError(f"{model} cannot be fetched from the hub: {first_line(error)}") from error
