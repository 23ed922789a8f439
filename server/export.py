"""`tokenclock-server export`: compile a checkpoint for Neuron into a folder that `serve` takes as it is.

What cannot work is refused before the compiler starts, since it runs for an hour. The folder appears when everything is
in it: graph, configs, sharded weights, and what upstream leaves out, tokenizer and generation config.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import signal
import sys
import tomllib
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from server.backends.shape import Shape
from server.errors import ModelError, SettingsError
from server.machine import FOR_NEURON, PIP, TARGETS, Machine, read, refused_cores
from server.model import COMPILED, locate, weight_files
from server.tokenizer import first_line, generation_config

logger = logging.getLogger(__name__)

INF2_CORES = 24  # of inf2.48xlarge, the largest


def presets() -> dict[str, dict[str, Any]]:
    return tomllib.loads((files("server") / "presets.toml").read_text(encoding="utf-8"))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokenclock-server export",
        description="Compile a model for AWS Neuron; needs the Neuron compiler, and minutes to hours.",
        epilog="A prefill costs the full --max-context-length whatever the prompt, so time to first token is flat: "
        "choose it as small as your prompts allow. With an option beside --preset, the option wins.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--model", required=True, metavar="ID_OR_DIR", help="a hub id, or better: a folder with weights"
    )
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="DIR", help="must not exist yet")
    parser.add_argument("--preset", choices=sorted(presets()), metavar="NAME", help=", ".join(presets()))
    parser.add_argument("--batch-size", type=at_least(1), metavar="N", help="slots: requests decoded together")
    parser.add_argument("--sequence-length", type=at_least(4), metavar="N", help="prompt and new tokens of one request")
    parser.add_argument(
        "--max-context-length", type=at_least(2), metavar="N", help="the longest prompt (default: the sequence length)"
    )
    parser.add_argument("--cores", type=at_least(1), metavar="N", help="NeuronCores that share the model")
    parser.add_argument("--instance-type", choices=TARGETS, help="where it will run")
    parser.add_argument(
        "--on-device-sampling",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="sample in the graph: faster; without it, penalties, seeds and log probabilities work (default: wherever "
        "optimum-neuron does)",
    )
    return parser


def at_least(least: int) -> Any:
    def whole(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
        return int(text)

    return whole


def run(arguments: Sequence[str], look: Callable[[], Machine] = read) -> int:
    """The verb. `look` tells what machine this is.

    Raises: SettingsError in a sentence.
    """
    asked = parser().parse_args(arguments)
    out: Path = asked.output
    if out.exists():
        raise SettingsError(f"{out} exists already: name a folder that doesn't, or remove it")
    model, machine = locate(asked.model), look()
    if Path(model).is_dir():
        require_checkpoint(Path(model))
    shape = shape_of(asked, model_config(model))
    require_compiler(machine)
    if machine.neuron_major is None:  # upstream takes trn1 for granted where there is no device
        os.environ.setdefault("NEURON_PLATFORM_TARGET_OVERRIDE", TARGETS[shape.instance_type])
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was begun is removed
    part = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        part = Path(mkdtemp(prefix=f".{out.name}.", dir=out.parent))  # a neighbour: the last step is a rename
        export(model, part, shape)
        part.chmod(0o755)
        part.rename(out)
    except OSError as error:
        raise SettingsError(f"{out} can't be written: {error.strerror or first_line(error)}") from error
    finally:
        signal.signal(signal.SIGTERM, before)
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)
    if not Path(model).is_dir():
        logger.warning("weights of a hub id are fetched at every load: export a local folder to have them beside it")
    print(f"exported to {out}: {shape}\nnext: tokenclock-server serve --backend neuron --model {out}")
    return 0


def export(model: str, folder: Path, shape: Shape) -> None:
    """Compile, and write all that `serve` needs into an empty folder."""
    from transformers import AutoTokenizer

    from server.backends.neuron import compile_model

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except Exception as error:  # the tokenizers binding raises Exception itself
        raise ModelError(f"{model} has no tokenizer that can be loaded: {first_line(error)}") from error
    logger.info("compiling %s: %s", model, shape)
    compile_model(model, folder, shape)
    tokenizer.save_pretrained(folder)
    # `save_pretrained` refuses what some checkpoints of Llama 2 hold: a temperature beside do_sample false.
    generation_config(model).to_json_file(folder / "generation_config.json", use_diff=True)


def model_config(model: str) -> Any:
    """The text model's config. Raises: ModelError."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model).get_text_config()
    except Exception as error:  # the hub client and transformers each raise their own kind
        raise ModelError(f"{model} has no config that can be read: {first_line(error)}") from error


def shape_of(asked: argparse.Namespace, config: Any) -> Shape:
    """The preset, with what was said beside it.

    Raises: SettingsError where something is missing, or cannot work.
    """
    preset = presets()[asked.preset] if asked.preset else {}
    for told, name in (("layers", "num_hidden_layers"), ("hidden_size", "hidden_size")):
        if preset and preset[told] != (said := getattr(config, name, None)):
            raise SettingsError(
                f"the preset {asked.preset} is for {told.replace('_', ' ')} {preset[told]}, {asked.model} has {said}: "
                "name the preset of its size, or give the shape without one"
            )
    needed = ("batch_size", "sequence_length", "cores", "instance_type")
    values: dict[str, Any] = {name: getattr(asked, name) or preset.get(name) for name in needed}
    if missing := ["--" + name.replace("_", "-") for name, value in values.items() if value is None]:
        raise SettingsError(f"{', '.join(missing)} missing: give them, or a --preset ({', '.join(presets())})")
    length = values["sequence_length"]
    shape = Shape(
        **values, max_context_length=asked.max_context_length or length, on_device_sampling=asked.on_device_sampling
    )
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and length > longest:
        raise SettingsError(
            f"--sequence-length {length} passes the model's {longest} positions: ask for at most {longest}"
        )
    if shape.max_context_length > length:
        raise SettingsError(f"--max-context-length {shape.max_context_length} passes the sequence length {length}")
    require_cores(shape.cores, shape.instance_type)
    return shape


def require_checkpoint(folder: Path) -> None:
    """Raises: ModelError where a folder holds no weights, or compiled ones."""
    if (folder / COMPILED).is_file():
        raise ModelError(f"{folder} is an export already: name the folder that it was made from")
    if not weight_files(folder):
        raise ModelError(f"{folder} has no weights, neither model.safetensors nor pytorch_model.bin: copy them there")


def require_compiler(machine: Machine) -> None:
    """Raises: SettingsError where a package that compiles is missing, or PyPI's placeholder for it."""
    if absent := [name for name in FOR_NEURON if machine.packages[name].state != "installed"]:
        raise SettingsError(
            f"the Neuron compiler is not complete ({', '.join(absent)}): export on a Neuron machine, in its image, or "
            f"{PIP.format(machine.packages['optimum-neuron'].version or '0.4.5')}; no device is needed to compile"
        )


def require_cores(cores: int, instance_type: str) -> None:
    """Raises: SettingsError where the runtime would refuse so many, long after the compiler has begun."""
    if refused := refused_cores(instance_type, cores):
        raise SettingsError(f"{instance_type} can't run on {cores} cores: {refused}")
    if instance_type == "inf2" and cores > INF2_CORES:
        raise SettingsError(f"inf2 can't run on {cores} cores: inf2.48xlarge, its largest, has {INF2_CORES}")
