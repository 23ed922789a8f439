"""Where a model's files are: a folder here, or a name on the hub."""

from __future__ import annotations

import json
import os
from pathlib import Path

from server.errors import ModelError

COMPILED = "neuron_config.json"  # what makes a folder an export of optimum-neuron
SAGEMAKER_FOLDER = Path("/opt/ml/model")  # where SageMaker unpacks a model's archive


def container_model() -> str | None:
    """The model that a container was started for: `HF_MODEL_ID`, or what SageMaker has unpacked. None: neither.

    Source: the environment of Hugging Face's inference containers; SageMaker's contract for hosting containers.
    """
    if named := os.environ.get("HF_MODEL_ID"):
        return named
    # Whatever was unpacked there is meant to be served: a wrong archive must not pass for no archive.
    return str(SAGEMAKER_FOLDER) if SAGEMAKER_FOLDER.is_dir() and any(SAGEMAKER_FOLDER.iterdir()) else None


def locate(model: str) -> str:
    """The folder of a model, or its hub id unchanged (transformers fetches and caches it).

    Raises: ModelError where it is meant as a folder and there is none, or none that holds a model.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{model} is a folder without config.json: name a folder that save_pretrained has written")
        return str(folder)
    organisation, slash, name = model.partition("/")
    hub_id = slash and organisation not in ("", ".", "..", "~") and "/" not in name and not Path(organisation).is_dir()
    if folder.exists() or not hub_id:
        raise ModelError(f"there is no model folder {model}: name an existing folder, or a hub id such as org/name")
    return model


def weight_files(folder: Path) -> list[Path]:
    """A checkpoint's files, by its index where it has one; none where there are no weights.

    Raises: ModelError where a file of the index is missing, or the index can't be read.
    """
    for whole in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{whole}.index.json"
        if not index.is_file():
            if (folder / whole).is_file():
                return [folder / whole]
            continue
        try:
            named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise ModelError(f"{index} cannot be read ({error!r}): copy the folder again") from error
        if absent := [name for name in named if not (folder / name).is_file()]:
            raise ModelError(
                f"{folder} lacks {len(absent)} of {len(named)} files of weights, {absent[0]} first: copy it again"
            )
        return [folder / name for name in named]
    return []
