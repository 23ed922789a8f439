"""What pip brings with an extra only: a module that isn't there is named with the command, before anything is measured.

`pyproject.toml` has the extras.
"""

from __future__ import annotations

from importlib.util import find_spec

EXTRAS = {
    "boto3": "sagemaker",
    "botocore": "sagemaker",
    "h2": "http2",
    "huggingface_hub": "hub",
    "tokenizers": "tokenizer",
}


def require(*modules: str) -> None:
    """Raises: ModuleNotFoundError for the first that isn't installed."""
    for name in modules:
        if find_spec(name) is None:
            raise ModuleNotFoundError(name=name)


def needed(url: str | None, tokenizer: object) -> list[str]:
    """The modules that an endpoint's URL and a tokenizer's file will ask for later, when a run has begun."""
    aws = ["boto3", "botocore"] if (url or "").startswith("sagemaker://") else []
    return [*aws, *(["tokenizers"] if tokenizer else [])]


def remedy(error: ModuleNotFoundError) -> str:
    name = (error.name or str(error)).partition(".")[0]
    return f"{name} is not installed: pip install 'tokenclock[{EXTRAS.get(name, 'loadtest')}]'"
