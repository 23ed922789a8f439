"""What a model is compiled for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of both graphs. They are static: a prefill costs `max_context_length`, whatever the prompt."""

    batch_size: int  # slots
    sequence_length: int  # prompt and new tokens
    max_context_length: int  # the longest prompt
    cores: int
    instance_type: str
    on_device_sampling: bool | None = None  # None: as optimum-neuron has it for this model, on wherever it works
