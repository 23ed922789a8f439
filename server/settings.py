"""Every setting of the server, validated once; the command line and the environment are both made from this class.

`--max-total-tokens 1024` and `TOKENCLOCK_MAX_TOTAL_TOKENS=1024` are the same; the command line wins.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, CliApp, SettingsConfigDict

from server.errors import SettingsError
from server.model import container_model


class Settings(BaseSettings):
    """Serve a model over HTTP, in the protocols of TGI, OpenAI and SageMaker."""

    model_config = SettingsConfigDict(
        env_prefix="TOKENCLOCK_",
        cli_prog_name="tokenclock-server serve",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        extra="forbid",
    )

    model: str | None = Field(
        default=None,
        min_length=1,
        description="model folder or hub id; without it, HF_MODEL_ID, then /opt/ml/model, then the demonstration model",
    )
    served_model_name: str | None = Field(
        default=None, min_length=1, description="the name that clients see; without it, --model as it stands"
    )
    backend: Literal["cpu", "neuron"] = Field(
        default="cpu",
        description="what runs the model: transformers on the CPU, or a folder made by `export` on Neuron",
    )
    slots: Annotated[
        int | None, Field(ge=1, le=1024, description="requests decoded together; 4 on the CPU, on Neuron as compiled")
    ] = None
    max_total_tokens: Annotated[
        int | None,
        Field(ge=4, description="prompt and new tokens of one request; 2048 on the CPU, on Neuron as compiled"),
    ] = None
    max_concurrent_requests: Annotated[int, Field(ge=1, description="texts running and waiting; one more gets 429")] = (
        128
    )
    max_client_batch_size: Annotated[int, Field(ge=1, description="texts of one request: prompts times n")] = 32
    payload_limit: Annotated[int, Field(ge=1, description="bytes of a body; more gets 413")] = 2_000_000
    max_unread_bytes: Annotated[
        int, Field(ge=0, description="bytes of a stream kept for a client that doesn't read; more ends it")
    ] = 1_000_000
    threads: Annotated[int | None, Field(ge=1, description="torch threads on the CPU; without it, torch decides")] = (
        None
    )
    host: str = Field(default="127.0.0.1", description="address to bind")
    port: Annotated[int, Field(ge=0, le=65535, description="port to bind; 0 takes a free one")] = 8080
    grace_s: Annotated[float, Field(ge=0, description="seconds that running requests have to finish after SIGTERM")] = (
        20.0
    )

    api_key: Annotated[
        SecretStr | None,
        Field(
            min_length=1,
            description="clients must send `authorization: Bearer KEY`; without it, API_KEY, then nobody is asked. A "
            "command line can be read by others: prefer the environment",
        ),
    ] = None
    read_timeout_s: Annotated[
        float, Field(gt=0, description="seconds for a request's head to arrive, and again for its body; then 408")
    ] = 30.0
    step_timeout_s: Annotated[
        float, Field(gt=0, description="seconds for one call of the backend; then it counts as lost, for good")
    ] = 300.0
    log_format: Literal["json", "text"] | None = Field(
        default=None, description="how log lines are written; without it, text on a terminal, json elsewhere"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="the least that is logged; debug: probes and scrapes, too"
    )

    @field_validator("api_key", mode="before")
    @classmethod
    def _as_for_tgi(cls, key: object) -> object:
        return os.environ.get("API_KEY") or None if key is None else key

    @field_validator("api_key")
    @classmethod
    def _fits_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        if key is not None and not (key.get_secret_value().isascii() and key.get_secret_value().isprintable()):
            raise ValueError("a key must be of printable ASCII characters, or no header can carry it")
        return key

    @field_validator("model")
    @classmethod
    def _of_a_container(cls, model: str | None) -> str | None:
        return container_model() if model is None else model

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.backend == "neuron" and self.model is None:
            raise ValueError("the neuron backend needs --model: a folder that `tokenclock-server export` has made")
        if self.backend == "neuron" and self.threads is not None:
            raise ValueError("threads are the cpu backend's: leave --threads out with --backend neuron")
        self.require_room(self.slots or 1)
        self.max_client_batch_size = min(self.max_client_batch_size, self.max_concurrent_requests)
        return self

    def require_room(self, slots: int) -> None:
        """Raises: ValueError where so many slots could never be filled."""
        if self.max_concurrent_requests < slots:
            raise ValueError(
                f"max_concurrent_requests {self.max_concurrent_requests} is below slots {slots}, so slots would stay "
                f"empty: raise it to at least {slots}"
            )


def parse(arguments: Sequence[str]) -> Settings:
    """Settings from the command line and the environment. `--help` and unknown options leave through SystemExit.

    Raises: SettingsError naming the option, its value and what is allowed.
    """
    try:
        return CliApp.run(Settings, cli_args=list(arguments))
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            said = "" if problem["loc"] == ("api_key",) else f" {problem['input']}"
            option = "".join(f"--{str(part).replace('_', '-')}{said}: " for part in problem["loc"])
            problems.append(option + problem["msg"].removeprefix("Value error, "))
        raise SettingsError("; ".join(problems)) from error
