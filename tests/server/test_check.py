"""`check` says what a machine can run, and what is missing, before anything is loaded.

Method: a made-up machine (`worlds.py`) on which all is right, then one thing changed at a time. The real one is last.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from server.check import Finding, blocking, findings_for_cpu, findings_for_neuron, run
from tests.server.worlds import (
    ASKED_FOR,
    INSTALLED,
    SHARD_BYTES,
    SHARDS,
    WRONG_PACKAGE,
    World,
    install,
    uninstall,
    write,
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def only(findings: tuple[Finding, ...], subject: str) -> Finding:
    (found,) = [each for each in findings if each.subject == subject]
    return found


# Packages.

#: PyPI's wheels as they are: the version, and the folder's name, of which two cannot be imported.
PLACEHOLDERS = {
    "torch-neuronx": ("1.0", "torch_neuronx"),
    "neuronx-cc": ("1.0.post1", "neuronx-cc"),
    "libneuronxla": ("1.0", "libneuronxla"),
    "neuronx-distributed": ("0.1", "neuronx-distributed"),
    "nki": ("0.0.1", "nki"),
}


@pytest.mark.parametrize("name", PLACEHOLDERS)
def test_pypis_placeholders_are_recognised_without_importing_them(world: World, name: str):
    version, module = PLACEHOLDERS[name]
    if name in INSTALLED:
        uninstall(world.site, name)
    install(world.site, name, version, module, body=WRONG_PACKAGE, code=f'raise ImportError("{WRONG_PACKAGE}")')
    found = only(world.findings(), name)
    assert f"{version} is PyPI's placeholder" in found.said
    if name == "nki":  # optimum-neuron does without it
        assert (found.verdict, blocking(world.findings())) == ("note", None)
    else:
        assert found.verdict == "wrong"
        assert f"; optimum-neuron 0.4.5 asks for =={INSTALLED[name][0].split('+')[0]}" in found.said
        pip = "pip install --extra-index-url https://pip.repos.neuron.amazonaws.com 'optimum-neuron[neuronx]==0.4.5'"
        assert only(world.findings(), "packages").said.endswith(pip)


@pytest.mark.parametrize("name", [name for name in INSTALLED if name not in ("optimum", "optimum-neuron")])
def test_a_missing_package_blocks_where_nothing_loads_without_it(world: World, name: str):
    assert only(world.findings(), name) == Finding(name, "ok", INSTALLED[name][0])
    uninstall(world.site, name)
    found = only(world.findings(), name)
    assert found.said.startswith("not installed")
    optional = name in ("torchvision", "protobuf", "numpy", "huggingface-hub")
    assert found.verdict == ("note" if optional else "missing")
    assert (blocking(world.findings()) is None) == optional


def test_without_optimum_neuron_the_packages_are_looked_at_all_the_same(world: World):
    uninstall(world.site, "optimum-neuron")
    findings = world.findings(model=False)
    assert only(findings, "optimum-neuron") == Finding("optimum-neuron", "missing", "not installed")
    assert only(findings, "neuronx-cc").verdict == "ok"
    assert only(findings, "packages").verdict == "missing"


def test_another_version_than_asked_for_is_noted_with_both(world: World):
    uninstall(world.site, "torch")
    install(world.site, "torch", "2.13.0+cpu", "torch")
    assert only(world.findings(), "torch") == Finding(
        "torch", "note", "2.13.0+cpu; optimum-neuron 0.4.5 asks for ==2.8.0.*"
    )
    assert blocking(world.findings()) is None


def test_the_pins_are_those_of_the_release_that_is_installed(world: World):
    uninstall(world.site, "optimum-neuron")
    install(world.site, "optimum-neuron", "0.5.0", "optimum", more=ASKED_FOR.replace("2.21.33363.0", "2.22.1.0"))
    said = only(world.findings(), "neuronx-cc").said
    assert said == "2.21.33363.0+82129205; optimum-neuron 0.5.0 asks for ==2.22.1.0"


def test_a_package_without_its_module_is_wrong(world: World):
    shutil.rmtree(world.site / "neuronxcc")
    found = only(world.findings(), "neuronx-cc")
    assert found.verdict == "wrong"
    assert found.said.startswith("2.21.33363.0+82129205 lacks its module")


def test_what_an_interrupted_uninstall_leaves_is_not_installed(world: World):
    (world.site / "torch_xla-2.8.1.dist-info" / "METADATA").unlink()
    assert only(world.findings(), "torch-xla").verdict == "missing"


def test_another_python_than_optimum_neuron_takes_is_wrong(world: World):
    machine = world.machine()
    assert only(findings_for_neuron(machine), "python") == Finding("python", "ok", platform.python_version())
    late = replace(machine, python=replace(machine.python, version="3.12.4", wanted="<3.12,>=3.10", fits=False))
    found = only(findings_for_neuron(late), "python")
    assert found.verdict == "wrong"
    assert found.said == "3.12.4; optimum-neuron asks for <3.12,>=3.10: make an environment of Python 3.11"


# One thing changed at a time.


def made(**changed: Any) -> Callable[[World], None]:
    return lambda world: world.put_export(**changed)


def without(path: str) -> Callable[[World], None]:
    return lambda world: world.hide(path)


def without_file(path: str) -> Callable[[World], None]:
    return lambda world: (world.model / path).unlink()


def environ(**values: str) -> Callable[[World], None]:
    return lambda world: world.environ.update(values)


def devices(instance: str | None, count: int) -> Callable[[World], None]:
    return lambda world: world.put_devices(instance, count)


def memory(kib: int) -> Callable[[World], None]:
    return lambda world: world.put("proc/meminfo", f"MemAvailable: {kib} kB\n")


def no_driver(world: World) -> None:
    world.put("proc/devices", "Character devices:\n  1 mem\n")


def no_driver_elsewhere(world: World) -> None:
    no_driver(world)
    world.put("sys/devices/virtual/dmi/id/product_name", "m5.large\n")


def unsharded(world: World) -> None:
    shutil.rmtree(world.model / "checkpoint")
    write(world.model / "model.safetensors", "x" * 24 * SHARD_BYTES)


def unsharded_and_short(world: World) -> None:
    unsharded(world)
    memory(8)(world)


def on_the_hub(world: World) -> None:
    shutil.rmtree(world.model / "checkpoint")
    world.put_export(checkpoint_id="meta-llama/Llama-2-7b-chat-hf")
    shutil.rmtree(world.model / "checkpoint")


def empty_checkpoint(world: World) -> None:
    on_the_hub(world)
    (world.model / "checkpoint").mkdir()  # optimum-neuron looks nowhere else then


def no_weights(world: World) -> None:
    shutil.rmtree(world.model / "checkpoint")


CHANGES: dict[str, tuple[Callable[[World], None], str, str, str]] = {
    "no driver": (no_driver, "driver", "missing", "install aws-neuronx-dkms on this inf2.48xlarge"),
    "no Neuron instance": (no_driver_elsewhere, "driver", "missing", "start one of inf2, trn1, trn1n, trn2"),
    "driver version hidden": (without("sys/module"), "driver", "ok", "of unknown version, major 245"),
    "instance hidden": (devices(None, 12), "instance", "wrong", "unreadable in /sys, which a container may hide"),
    "another instance": (devices("inf1.6xlarge", 4), "instance", "wrong", "inf1.6xlarge: it must be one of inf2, trn1"),
    "no devices": (devices("inf2.48xlarge", 0), "devices", "missing", "docker run --device /dev/neuron0"),
    "sysfs hidden": (without("sys/devices/virtual/neuron_device"), "sysfs", "wrong", "docker run -v /sys/devices"),
    "a comma list": (
        environ(NEURON_RT_VISIBLE_CORES="0,1,2,3"),
        "cores",
        "note",
        "1 of 24 visible, NEURON_RT_VISIBLE_CORES=0,1,2,3: optimum-neuron reads one number, and a range such as 0-7",
    ),
    "fewer cores": (environ(NEURON_RT_NUM_CORES="8"), "cores", "note", "8 of 24 visible, NEURON_RT_NUM_CORES=8"),
    "cores that can't be read": (
        environ(NEURON_RT_NUM_CORES="all"),
        "cores",
        "wrong",
        "0 of 24 visible, NEURON_RT_NUM_CORES=all: optimum-neuron reads one number",
    ),
    "another release": (
        made(optimum_neuron_version="0.4.4"),
        "made by",
        "wrong",
        "optimum-neuron 0.4.4, but 0.4.5 is installed: install what made it, or export again",
    ),
    "an old export": (made(optimum_neuron_version=...), "made by", "wrong", "optimum-neuron of unknown version, but"),
    "another compiler": (
        made(neuronxcc_version="2.20.9961.0+0acef03a"),
        "made by",
        "wrong",
        "neuronx-cc 2.20.9961.0+0acef03a, but 2.21.33363.0+82129205 is installed",
    ),
    "another target": (
        made(target="trn2"),
        "target",
        "wrong",
        "compiled for trn2, but inf2.48xlarge runs trn1: export again",
    ),
    "a smaller instance": (devices("inf2.xlarge", 1), "ranks", "wrong", "needs 24 cores; 2 of 2 visible: give it more"),
    "too few cores visible": (
        environ(NEURON_RT_VISIBLE_CORES="0,1"),
        "ranks",
        "wrong",
        "needs 24 cores; 1 of 24 visible, NEURON_RT_VISIBLE_CORES=0,1: optimum-neuron reads",
    ),
    "more stages than cores": (made(pp_degree=2, ep_degree=2), "ranks", "wrong", "needs 96 cores"),
    "one prompt for all slots": (
        made(continuous_batching=False),
        "slots",
        "wrong",
        "4 without continuous_batching, where a prompt overwrites every slot",
    ),
    "more rows than slots": (made(max_batch_size=8), "rows", "wrong", "8 in the cache for 4 slots: export again"),
    "logits too": (made(output_logits=True), "outputs", "wrong", "export again without output_logits"),
    "a shard lost": (
        without_file(f"{SHARDS}/tp7_sharded_checkpoint.safetensors"),
        "weights",
        "wrong",
        "23 of 24 shards: copy the folder again",
    ),
    "unsharded weights": (unsharded, "weights", "note", "split in host memory at every load"),
    "no memory to split them": (unsharded_and_short, "weights", "wrong", "0.0 GiB of memory are available"),
    "little memory": (memory(8), "weights", "note", "but 0.0 GiB of memory are available: free some"),
    "weights on the hub": (on_the_hub, "weights", "note", "fetched from meta-llama/Llama-2-7b-chat-hf on the hub"),
    "an empty checkpoint": (empty_checkpoint, "weights", "missing", "neither shards nor model.safetensors"),
    "no weights": (no_weights, "weights", "missing", "neither shards nor model.safetensors"),
    "no tokenizer": (without_file("tokenizer.json"), "tokenizer", "missing", "copy the source model's"),
}


def test_all_is_right_with_an_export_on_the_instance_that_it_was_made_on(world: World):
    findings = world.findings()
    assert {each.subject: each.said for each in findings if each.verdict != "ok"}.keys() == {"disk"}
    said = {each.subject: each.said for each in findings}
    assert said["driver"] == "2.22.2.0, major 245"
    assert said["cores"] == "24 of 24 visible"
    assert said["ranks"] == "needs 24 cores"
    assert said["slots"] == "4 of 2048 tokens"
    assert said["rows"] == "4 in the cache"
    assert said["memory"] == "372.0 GiB available"
    assert said["weights"] == "0.0 GiB in 24 shards"
    assert "GiB free for compiled graphs in /var/tmp/neuron-compile-cache" in said["disk"]
    assert blocking(findings) is None


@pytest.mark.parametrize("change", CHANGES)
def test_one_thing_changed_is_one_finding_with_its_remedy(world: World, change: str):
    apply, subject, verdict, words = CHANGES[change]
    apply(world)
    found = [each for each in world.findings() if each.subject == subject and words in each.said]
    assert [each.verdict for each in found] == [verdict]
    reason = blocking(world.findings())
    if verdict in ("missing", "wrong"):
        assert f"{subject}: {found[0].said}" in (reason or "")


def test_every_finding_about_devices_and_exports_is_seen_both_ways(world: World):
    changed = {subject for _, subject, verdict, _ in CHANGES.values() if verdict != "ok"}
    packages = {"python", *world.machine().packages}
    good = {each.subject for each in world.findings() if each.verdict == "ok"} - packages
    assert good - {"memory"} == changed


def test_a_single_slot_needs_no_continuous_batching(world: World):
    world.put_export(batch_size=1, continuous_batching=False)
    assert only(world.findings(), "slots") == Finding("slots", "ok", "1 of 2048 tokens")


@pytest.mark.parametrize(("ranks", "noted"), [(1, False), (8, False), (32, False), (24, True), (4, True)])
def test_trn1_is_told_which_numbers_of_cores_its_runtime_takes(world: World, ranks: int, noted: bool):
    world.put_devices("trn1.32xlarge", 16)
    world.put_export(tp_degree=ranks, local_ranks_size=24)
    said = [each.said for each in world.findings() if each.subject == "ranks" and each.verdict == "note"]
    assert bool(said) == noted
    assert all("1, 2, 8, 16 or a multiple of 32" in each for each in said)


def test_a_compiler_without_a_build_in_its_metadata_is_the_same_compiler(world: World):
    world.put_export(neuronxcc_version="2.21.33363.0")
    assert blocking(world.findings()) is None


def test_without_a_driver_an_export_is_told_of_the_driver_alone(world: World):
    no_driver(world)
    reason = blocking(world.findings()) or ""
    assert reason.startswith("driver: /proc/devices names no neuron")
    assert ";" not in reason


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("neuron_config.json", b"{", "neuron_config.json cannot be read (Expecting property name"),
        ("neuron_config.json", b"[1]", "neuron_config.json cannot be read (cannot convert"),
        ("neuron_config.json", b"\xff\xfe", "neuron_config.json cannot be read ('utf-8' codec"),
        ("neuron_config.json", b'{"tp_degree": "many"}', "it cannot be read (invalid literal for int() with base 10"),
        ("neuron_config.json", b'{"batch_size": [4]}', "it cannot be read (int() argument must be"),
        ("config.json", b"", "config.json cannot be read (Expecting value"),
        ("config.json", None, "is half an export, without config.json: copy the folder again"),
        ("model.pt", None, "is half an export, without model.pt: copy the folder again"),
        ("neuron_config.json", None, "is not compiled for Neuron: run tokenclock-server export --model"),
    ],
)
def test_a_broken_export_is_a_finding_and_no_traceback(world: World, name: str, content: bytes | None, words: str):
    path = world.model / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    found = only(world.findings(), "model")
    assert found.verdict == "wrong"
    assert words in found.said


def test_what_the_system_refuses_is_a_finding_and_no_traceback(world: World, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    machine = world.machine()
    monkeypatch.setattr(Path, "is_file", refuse)
    for findings in (findings_for_neuron(machine, world.model), findings_for_cpu(machine, world.model)):
        assert "Permission denied" in only(findings, "model").said


def test_a_folder_that_is_not_there_is_a_finding(world: World):
    shutil.rmtree(world.model)
    assert only(world.findings(), "model").said.startswith(f"there is no folder {world.model}")
    assert only(findings_for_cpu(world.machine(), world.model), "model").verdict == "wrong"


# The CPU backend.


def plain(world: World) -> Path:
    folder = world.root.parent / "plain"
    write(folder / "config.json", "{}")
    write(folder / "model.safetensors", "x" * SHARD_BYTES)
    write(folder / "tokenizer.json", "{}")
    return folder


def test_a_plain_folder_runs_on_any_machine_with_torch(world: World):
    findings = findings_for_cpu(world.machine(), plain(world))
    assert [(each.subject, each.verdict) for each in findings] == [
        (subject, "ok") for subject in ("torch", "transformers", "memory", "weights", "tokenizer")
    ]
    uninstall(world.site, "torch")
    assert blocking(findings_for_cpu(world.machine())) == "torch: not installed: pip install 'tokenclock[cpu]'"


@pytest.mark.parametrize(
    ("lost", "subject", "words"),
    [
        ("config.json", "model", "config.json cannot be read"),
        ("model.safetensors", "weights", "nor pytorch_model.bin"),
        ("tokenizer.json", "tokenizer", "none of tokenizer.json, tokenizer.model, vocab.json"),
    ],
)
def test_a_plain_folder_without_one_of_its_files_is_told_which(world: World, lost: str, subject: str, words: str):
    folder = plain(world)
    (folder / lost).unlink()
    found = only(findings_for_cpu(world.machine(), folder), subject)
    assert found.verdict in ("missing", "wrong")
    assert words in found.said


def test_weights_that_memory_cannot_hold_are_wrong_for_the_cpu(world: World):
    world.put("proc/meminfo", "MemAvailable: 0 kB\n")
    assert only(findings_for_cpu(world.machine(), plain(world)), "weights").verdict == "wrong"


@pytest.mark.parametrize(("dtype", "said"), [("float32", "0.0 GiB as float32"), ("bfloat16", "but 0.0 GiB of memory")])
def test_weights_of_16_bits_take_twice_their_size_on_the_cpu(world: World, dtype: str, said: str):
    folder = plain(world)
    write(folder / "config.json", f'{{"dtype": "{dtype}"}}')
    write(folder / "model.safetensors", "x" * 1500)
    world.put("proc/meminfo", "MemAvailable: 2 kB\n")
    assert said in only(findings_for_cpu(world.machine(), folder), "weights").said


def test_a_checkpoint_with_a_part_missing_is_named(world: World):
    folder = plain(world)
    (folder / "model.safetensors").unlink()
    write(folder / "model.safetensors.index.json", '{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}')
    write(folder / "1.safetensors", "")
    found = only(findings_for_cpu(world.machine(), folder), "model")
    assert (found.verdict, "lacks 1 of 2 files of weights, 2.safetensors first" in found.said) == ("wrong", True)


def test_a_cache_that_may_not_be_looked_into_blocks_nothing(world: World, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert only(world.findings(), "disk").said.startswith("unknown free for compiled graphs")
    assert blocking(world.findings()) is None


def test_an_export_is_nothing_for_the_cpu(world: World):
    assert "compiled for Neuron" in (blocking(findings_for_cpu(world.machine(), world.model)) or "")


# The verb.


@pytest.fixture
def check(world: World, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    for name in ("NEURON_RT_NUM_CORES", "NEURON_RT_VISIBLE_CORES", "NEURON_CC_FLAGS"):
        monkeypatch.delenv(name, raising=False)
    return lambda *arguments: run([str(each) for each in arguments], world.root, [str(world.site)])


def test_a_finding_is_a_line_of_aligned_columns_and_the_last_line_says_what_can_run(
    check: Callable[..., int], capsys: pytest.CaptureFixture[str], world: World
):
    assert check() == 0
    *lines, last = capsys.readouterr().out.splitlines()
    findings = [*findings_for_cpu(world.machine()), *world.findings(model=False)]
    assert len(lines) == len(findings) > 15
    for line, each in zip(lines, findings, strict=True):
        if each.subject != "disk":  # which may be filled meanwhile
            assert line[8:] == f"{each.verdict:7}  {each.subject:19}  {each.said}"
    assert {line[:8] for line in lines} == {"cpu     ", "neuron  "}
    assert last == "this machine can run: cpu, neuron"


def test_the_exit_code_is_that_of_the_backend_which_the_folder_needs(
    check: Callable[..., int], capsys: pytest.CaptureFixture[str], world: World
):
    def last() -> str:
        return capsys.readouterr().out.splitlines()[-1]

    source = plain(world)
    assert check("--model", world.model) == 0
    assert last() == f"this machine can serve {world.model} with: neuron"
    assert check("--model", source) == 0
    assert last() == f"this machine can serve {source} with: cpu"
    assert check("--model", source, "--backend", "neuron") == 1
    assert last() == f"this machine cannot serve {source} with: neuron"
    assert check("--model", world.model, "--backend", "cpu") == 1
    no_driver(world)
    assert check("--model", world.model) == 1
    assert last() == f"this machine cannot serve {world.model} with: cpu, neuron"
    assert check("--model", source) == check() == check("--backend", "cpu") == 0
    assert check("--backend", "neuron") == 1
    assert last() == "this machine cannot run: neuron"


def test_bad_usage_leaves_with_two(check: Callable[..., int], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        check("--backend", "tpu")
    assert left.value.code == 2
    assert "usage: tokenclock-server check" in capsys.readouterr().err


def test_this_very_machine_can_run_the_cpu_backend_and_nothing_heavy_is_imported_to_say_so():
    program = (
        "import sys; from server.check import run; code = run([]); "
        "print(*sorted({'torch', 'transformers', 'optimum', 'numpy'} & set(sys.modules)), code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    *_, summary, last = done.stdout.splitlines()
    assert summary.startswith("this machine can run: cpu")
    assert last == "0"
