"""What `tokenclock-server export` writes, `serve --backend neuron` serves; what goes wrong in between is one sentence.

Method: both verbs' own code over upstream's real export and load, with the names of `machine.REPLACED` replaced, on a
made-up inf2.48xlarge (tests/server/worlds.py). Expected tokens are transformers' own.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server import export
from server.errors import ModelError
from server.loading import load
from server.settings import Settings
from tests.neuron_contract.conftest import Right
from tests.server.conftest import serve  # noqa: F401
from tests.server.worlds import World, install, uninstall

SHAPE = "--batch-size 4 --sequence-length 64 --max-context-length 32 --cores 1 --instance-type inf2"


@pytest.fixture
def world(tmp_path: Path, inferentia: None) -> World:
    """A made-up inf2.48xlarge with the optimum-neuron that runs here, and the compiler's stand-in."""
    from optimum.neuron.version import __version__

    from tests.neuron_contract.absent import COMPILER_VERSION

    world = World(tmp_path / "world")
    for name, version, module in (
        ("optimum-neuron", __version__, "optimum"),
        ("neuronx-cc", COMPILER_VERSION, "neuronxcc"),
    ):
        uninstall(world.site, name)
        install(world.site, name, version, module)
    return world


@pytest.fixture
def exported(world: World, demo_folder: Path, tmp_path: Path) -> Path:
    out = tmp_path / "exported"
    assert export.run(["--model", str(demo_folder), "-o", str(out), *SHAPE.split()], world.machine) == 0
    return out


@pytest.fixture
def loaded(world: World) -> Callable[..., Any]:
    """loaded(folder) is (backend, tokenizer), as `serve --backend neuron --model folder` gets them."""
    return lambda folder, **more: load(Settings(backend="neuron", model=str(folder), **more), world.machine)


def test_an_export_has_all_that_serve_needs_and_nothing_else(exported: Path, demo_folder: Path):
    files = {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()}
    assert files >= {"model.pt", "config.json", "neuron_config.json", "tokenizer.json", "generation_config.json"}
    assert "checkpoint/weights/tp0_sharded_checkpoint.safetensors" in files
    assert {path.name for path in exported.parent.iterdir()} == {"exported", "world"}, "nothing else was left"
    mine, theirs = (json.loads((at / "generation_config.json").read_text()) for at in (exported, demo_folder))
    assert mine["eos_token_id"] == theirs["eos_token_id"]
    assert mine["suppress_tokens"] == theirs["suppress_tokens"]


def test_an_export_is_served_over_http_with_transformers_own_tokens(
    serve: Any,  # noqa: F811
    world: World,
    exported: Path,
    right: Right,
    demo_folder: Path,
):
    settings = Settings(backend="neuron", model=str(exported), slots=4)
    with serve(settings, lambda asked: load(asked, world.machine)) as client:
        info = client.get("/info").json()
        assert (info["backend"]["name"], info["backend"]["on_device_sampling"], info["slots"]) == ("neuron", True, 4)
        body = {"inputs": "the clock", "parameters": {"max_new_tokens": 12, "details": True, "ignore_eos": True}}
        tokens = [token["id"] for token in client.post("/generate", json=body).json()["details"]["tokens"]]
        ids = [piece["id"] for piece in client.post("/tokenize", json={"inputs": "the clock"}).json()]
    assert tokens == right(demo_folder, ids, 12)


def test_every_option_reaches_the_compiler(
    world: World, demo_folder: Path, tmp_path: Path, loaded: Callable[..., Any], capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "deep" / "out"
    options = "--batch-size 2 --sequence-length 48 --cores 1 --instance-type trn1 --no-on-device-sampling"
    assert export.run(["--model", str(demo_folder), "-o", str(out), *options.split()], world.machine) == 0
    assert f"next: tokenclock-server serve --backend neuron --model {out}" in capsys.readouterr().out
    made = json.loads((out / "neuron_config.json").read_text())
    told = {name: made[name] for name in ("batch_size", "sequence_length", "max_context_length", "on_device_sampling")}
    assert told == {
        "batch_size": 2,
        "sequence_length": 48,
        "max_context_length": 48,
        "on_device_sampling": False,
    }
    limits = loaded(out)[0].limits
    assert (limits.slots, limits.max_input_tokens, limits.max_total_tokens) == (2, 47, 48)
    assert "seed" in limits.sampling


def test_a_generation_config_that_transformers_would_not_save_is_kept(world: World, demo_folder: Path, tmp_path: Path):
    """Llama 2's own: a temperature and top_p beside do_sample false."""
    model = tmp_path / "llama"
    shutil.copytree(demo_folder, model)
    awkward = {"eos_token_id": [1, 2], "do_sample": False, "temperature": 0.9, "top_p": 0.6}
    (model / "generation_config.json").write_text(json.dumps(awkward))
    export.run(["--model", str(model), "-o", str(tmp_path / "out"), *SHAPE.split()], world.machine)
    kept = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert {name: kept.get(name) for name in ("eos_token_id", "temperature", "top_p")} == {
        "eos_token_id": [1, 2],
        "temperature": 0.9,
        "top_p": 0.6,
    }


def test_a_model_that_upstream_has_no_graph_for_is_refused_and_leaves_nothing(world: World, tmp_path: Path):
    from transformers import GPT2Config

    from server.demo import train_tokenizer

    model = tmp_path / "gpt2"
    GPT2Config(n_positions=64).save_pretrained(model)
    (model / "model.safetensors").touch()
    train_tokenizer().save_pretrained(model)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ModelError, match="gpt2 cannot be compiled: Model type gpt2 is not supported"):
        export.run(["--model", str(model), "-o", str(tmp_path / "out"), *SHAPE.split()], world.machine)
    assert sorted(tmp_path.iterdir()) == before


def test_sigterm_while_the_compiler_runs_leaves_nothing(
    world: World, demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from server.backends import neuron

    def interrupted(*_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(neuron, "compile_model", interrupted)
    handler, before = signal.getsignal(signal.SIGTERM), sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit) as end:
        export.run(["--model", str(demo_folder), "-o", str(tmp_path / "out"), *SHAPE.split()], world.machine)
    assert end.value.code == 143
    assert sorted(tmp_path.iterdir()) == before
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.filterwarnings("ignore:Activating continuous batching")  # upstream's own words on it
@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("Qwen2", "--batch-size 4 --cores 2", None),
        ("Qwen2", "--batch-size 4 --cores 2 --on-device-sampling", "does not sample .* on the device in this shape"),
        ("Mixtral", "--batch-size 4 --cores 2", "compiles .* for one slot only: say --batch-size 1"),
        ("Mixtral", "--batch-size 1 --cores 2", None),
    ],
)
def test_what_upstream_holds_a_family_to_is_not_overruled(
    family: str,
    options: str,
    words: str | None,
    world: World,
    demo_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Upstream's own config decides, up to the compiler: Qwen 2 on two cores, sampled on the device, gives garbage."""
    import transformers
    from optimum.neuron import NeuronModelForCausalLM

    model = tmp_path / family
    shutil.copytree(demo_folder, model)
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
    getattr(transformers, f"{family}Config")(**sizes, dtype="float32").save_pretrained(model)
    compiled: list[Any] = []

    def until_here(_: str, config: Any) -> Any:
        compiled.append(config)
        raise RuntimeError("the compiler would start")

    monkeypatch.setattr(NeuronModelForCausalLM, "export", until_here)
    with pytest.raises(ModelError, match=words or "the compiler would start"):
        export.run(["--model", str(model), "-o", str(tmp_path / "out"), *f"{SHAPE} {options}".split()], world.machine)
    assert [config.on_device_sampling for config in compiled] == ([] if words else [False])


def test_a_folder_that_cannot_be_written_is_refused(world: World, demo_folder: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match=r"out can't be written: File exists"):
        export.run(["--model", str(demo_folder), "-o", str(tmp_path / "file/out"), *SHAPE.split()], world.machine)


def test_the_other_backend_is_named_where_a_folder_needs_it(
    exported: Path, demo_folder: Path, loaded: Callable[..., Any]
):
    with pytest.raises(ModelError, match="is not compiled for Neuron: run tokenclock-server export --model"):
        loaded(demo_folder)
    with pytest.raises(ModelError, match="is compiled for Neuron, which a CPU can't run: say --backend neuron"):
        load(Settings(model=str(exported)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"slots": 1}, "is compiled for 4 slots, --slots 1 asks for others"),
        ({"max_total_tokens": 2048}, "is compiled for 64 max total tokens, --max-total-tokens 2048 asks"),
        ({"max_concurrent_requests": 3}, "max_concurrent_requests 3 is below slots 4"),
    ],
)
def test_settings_that_the_export_was_not_compiled_for_are_refused(
    options: dict[str, int], words: str, exported: Path, loaded: Callable[..., Any]
):
    with pytest.raises(ModelError, match=words):
        loaded(exported, **options)


def test_an_export_on_the_hub_is_fetched_once_the_machine_can_run_it(
    exported: Path, world: World, loaded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    import huggingface_hub

    asked: list[str] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name: (asked.append(name), str(exported))[1])
    backend, _ = loaded("org/llama-neuron")
    assert (asked, backend.limits.slots) == (["org/llama-neuron"], 4)
    no_driver(world, exported)
    with pytest.raises(ModelError, match="driver: /proc/devices names no neuron"):
        loaded("org/llama-neuron")
    assert len(asked) == 1, "nothing is fetched for a machine without a device"


def test_an_export_that_the_hub_does_not_give_is_one_sentence(
    loaded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    import huggingface_hub

    def unreachable(_: str) -> str:
        raise OSError("the hub does not answer\nand says so at length")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ModelError, match="org/no-such-neuron cannot be fetched from the hub: ") as error:
        loaded("org/no-such-neuron")
    assert "\n" not in str(error.value)


def no_driver(world: World, _: Path) -> None:
    world.put("proc/devices", "")


def other_version(_: World, folder: Path) -> None:
    path = folder / "neuron_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"optimum_neuron_version": "0.4.4"}))


def other_instance(world: World, _: Path) -> None:
    world.put_devices("trn2.48xlarge", 16)


def broken_weights(_: World, folder: Path) -> None:
    (folder / "checkpoint/weights/tp0_sharded_checkpoint.safetensors").write_bytes(b"garbage")


def broken_graph(_: World, folder: Path) -> None:
    (folder / "model.pt").write_bytes(b"garbage")


def no_tokenizer(_: World, folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def broken_tokenizer(_: World, folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (no_driver, "driver: /proc/devices names no neuron"),
        (other_version, "made by: optimum-neuron 0.4.4, but 0."),
        (other_instance, "target: compiled for trn1, but trn2.48xlarge runs trn2"),
        (broken_weights, "EXPORT cannot be loaded onto the device: "),
        (broken_graph, "EXPORT cannot be loaded onto the device: "),
        (no_tokenizer, "tokenizer: none of tokenizer.json"),
        (broken_tokenizer, "EXPORT has no tokenizer that can be loaded: "),
    ],
)
def test_every_fault_at_startup_is_one_sentence(
    fault: Callable[[World, Path], None], words: str, world: World, exported: Path, loaded: Callable[..., Any]
):
    loaded(exported)
    fault(world, exported)
    with pytest.raises(ModelError) as error:
        loaded(exported)
    assert str(error.value).startswith(words.replace("EXPORT", str(exported)))
    assert "\n" not in str(error.value)


def test_an_export_whose_graphs_disagree_is_not_served(
    exported: Path, loaded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    from tests.neuron_contract.compiled import TracedModel

    forward = TracedModel.forward
    monkeypatch.setattr(
        TracedModel,
        "forward",
        lambda self, ids, positions, *more: forward(self, ids, positions + (ids.shape[1] == 1), *more),
    )
    with pytest.raises(ModelError, match="prefill and decode disagree on"):
        loaded(exported)


def test_a_graph_that_breaks_in_the_self_check_is_one_sentence(
    exported: Path, loaded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    from tests.neuron_contract.compiled import TracedModel

    def broken(*_: Any) -> Any:
        raise RuntimeError("nrt_execute status=1003\nmore lines of the runtime")

    monkeypatch.setattr(TracedModel, "forward", broken)
    with pytest.raises(ModelError, match=r"exported loads but does not run: nrt_execute status=1003$"):
        loaded(exported)
