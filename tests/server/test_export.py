"""`tokenclock-server export` refuses what cannot work in one sentence, before the compiler starts, and leaves nothing.

Method: the verb itself, on folders made here. That it compiles is shown in tests/neuron_contract/test_export_verb.py.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import LlamaConfig

from server import export
from server.backends.shape import Shape
from server.errors import ModelError, SettingsError
from tests.server.worlds import World, uninstall

SHAPE = "--batch-size 4 --sequence-length 64 --cores 2 --instance-type inf2"


@pytest.fixture
def refused(tmp_path: Path, demo_folder: Path) -> Callable[..., str]:
    """The sentence that options are refused with; the output folder stays away."""

    laptop = World(tmp_path / "world")  # a Neuron machine but for its compiler, so that nothing can ever start
    uninstall(laptop.site, "neuronx-cc")

    def sentence(options: str, model: Path = demo_folder, out: Path = tmp_path / "out") -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SettingsError) as error:
            export.run(["--model", str(model), "-o", str(out), *options.split()], laptop.machine)
        assert sorted(tmp_path.rglob("*")) == before
        return str(error.value)

    return sentence


@pytest.fixture
def llama_13b(tmp_path: Path) -> Path:
    """A config of the size of Llama 2 13B; nothing of it is loaded before the checks are through."""
    folder = tmp_path / "llama-13b"
    LlamaConfig(hidden_size=5120, num_hidden_layers=40, num_attention_heads=40).save_pretrained(folder)
    (folder / "model.safetensors").touch()
    return folder


def test_the_presets_are_the_pages_four_configurations():
    presets = export.presets()
    assert {name: (p["layers"], p["batch_size"]) for name, p in presets.items()} == {
        "llama2-7b-latency": (32, 1),
        "llama2-7b-throughput": (32, 4),
        "llama2-13b-latency": (40, 1),
        "llama2-13b-throughput": (40, 4),
    }
    assert {(p["cores"], p["sequence_length"], p["instance_type"]) for p in presets.values()} == {(24, 2048, "inf2")}
    data = Path(export.__file__).with_name("presets.toml").read_text()
    assert "Source: huggingface/optimum-neuron@27091837" in data


def test_a_preset_is_a_shape_and_an_option_beside_it_wins(llama_13b: Path):
    asked = export.parser().parse_args(
        ["--model", str(llama_13b), "-o", "x", "--preset", "llama2-13b-throughput", "--max-context-length", "768"]
    )
    shape = export.shape_of(asked, export.model_config(str(llama_13b)))
    assert shape == Shape(4, 2048, 768, 24, "inf2", on_device_sampling=None)


def test_without_a_max_context_length_it_is_the_sequence_length(demo_folder: Path):
    asked = export.parser().parse_args(["--model", "m", "-o", "x", *SHAPE.split(), "--no-on-device-sampling"])
    shape = export.shape_of(asked, export.model_config(str(demo_folder)))
    assert shape == Shape(4, 64, 64, 2, "inf2", on_device_sampling=False)


def test_a_preset_for_a_model_of_another_size_is_refused(refused: Callable[..., str], llama_13b: Path):
    said = refused("--preset llama2-7b-latency", model=llama_13b)
    assert "llama2-7b-latency is for layers 32" in said
    assert "has 40" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", "--batch-size, --sequence-length, --cores, --instance-type missing"),
        ("--batch-size 4 --sequence-length 64", "--cores, --instance-type missing"),
        (
            f"{SHAPE} --cores 24 --instance-type trn1",
            "trn1 can't run on 24 cores: trn1's runtime takes 1, 2, 8, 16 or a multiple of 32",
        ),
        (f"{SHAPE} --cores 3 --instance-type trn1n", "trn1n can't run on 3 cores"),
        (f"{SHAPE} --cores 32", "inf2 can't run on 32 cores: inf2.48xlarge, its largest, has 24"),
        (f"{SHAPE} --sequence-length 100000", "passes the model's 4096 positions: ask for at most 4096"),
        (f"{SHAPE} --max-context-length 65", "--max-context-length 65 passes the sequence length 64"),
        (SHAPE, "the Neuron compiler is not complete (neuronx-cc)"),
    ],
)
def test_what_cannot_work_is_refused(options: str, words: str, refused: Callable[..., str]):
    assert words in refused(options)


def test_trn1_takes_32_cores():
    export.require_cores(32, "trn1")
    export.require_cores(64, "trn1n")
    export.require_cores(24, "inf2")
    with pytest.raises(SettingsError, match="trn1 can't run on 48 cores"):
        export.require_cores(48, "trn1")


def test_an_existing_folder_is_never_written_to(refused: Callable[..., str], tmp_path: Path):
    taken = tmp_path / "taken"
    taken.mkdir()
    assert refused(SHAPE, out=taken) == f"{taken} exists already: name a folder that doesn't, or remove it"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "has no weights, neither model.safetensors nor pytorch_model.bin: copy them there"),
        ({"neuron_config.json": "{}"}, "is an export already: name the folder that it was made from"),
        ({"model.safetensors.index.json": "{"}, "model.safetensors.index.json cannot be read (JSONDecodeError"),
        (
            {"model.safetensors.index.json": '{"weight_map": {"a": "one", "b": "two", "c": "two"}}', "one": ""},
            "lacks 1 of 2 files of weights, two first: copy it again",
        ),
    ],
)
def test_a_folder_without_a_whole_checkpoint_is_refused_before_the_compiler_starts(
    files: dict[str, str], words: str, refused: Callable[..., str], demo_folder: Path, tmp_path: Path
):
    model = tmp_path / "checkpoint"
    shutil.copytree(demo_folder, model, ignore=shutil.ignore_patterns("*.safetensors"))
    for name, text in files.items():
        (model / name).write_text(text)
    assert words in refused(SHAPE, model=model)


def test_a_model_that_is_not_there_is_named(refused: Callable[..., str], tmp_path: Path):
    assert "there is no model folder" in refused(SHAPE, model=tmp_path / "absent")


def test_a_config_that_cannot_be_read_is_named(refused: Callable[..., str], tmp_path: Path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    (broken / "model.safetensors").touch()
    assert f"{broken} has no config that can be read" in refused(SHAPE, model=broken)
    assert issubclass(ModelError, SettingsError)


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", "²"])
def test_a_size_that_is_no_number_is_refused_by_name(value: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as end:
        export.run(["--model", "m", "-o", "x", "--batch-size", value])
    assert end.value.code == 2
    assert f"argument --batch-size: {value!r} is no whole number of at least 1" in capsys.readouterr().err


@pytest.mark.e2e
@pytest.mark.skipif(find_spec("neuronxcc") is not None, reason="there is a Neuron compiler here, which would start")
def test_without_a_compiler_the_command_ends_with_one_sentence(demo_folder: Path, tmp_path: Path):
    command = [sys.executable, "-m", "server", "export", "--model", str(demo_folder), "-o", str(tmp_path / "out")]
    done = subprocess.run([*command, *SHAPE.split()], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("tokenclock-server: the Neuron compiler is not complete (torch-neuronx")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
