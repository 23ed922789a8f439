"""What this machine can run and what is missing, one line a finding, before anything heavy is imported or loaded.

A finding that blocks is a failure of optimum-neuron or of Neuron's runtime, often minutes into a load.
Source: huggingface/optimum-neuron v0.4.5, configuration_utils.py, models/inference/backend/pretrained_model.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from server.errors import ModelError
from server.machine import FOR_CPU, FOR_NEURON, PIP, TARGETS, Machine, read, refused_cores
from server.model import COMPILED, weight_files

Verdict = Literal["ok", "missing", "wrong", "note"]
NO_CPU = "not installed: pip install 'tokenclock[cpu]'"
STATES = {"missing": "not installed", "placeholder": "is PyPI's placeholder", "unimportable": "lacks its module"}
AGAIN = "copy the folder again, or write it again"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
SYSFS = "/sys/devices/virtual/neuron_device"


@dataclass(frozen=True, slots=True)
class Finding:
    subject: str
    verdict: Verdict
    said: str


def blocking(findings: Iterable[Finding]) -> str | None:
    """Why it cannot run, to be told at startup. None: nothing is in the way."""
    said = [f"{each.subject}: {each.said}" for each in findings if each.verdict in ("missing", "wrong")]
    return "; ".join(said) or None


def findings_for_cpu(machine: Machine, model: Path | None = None) -> tuple[Finding, ...]:
    packages = (machine.packages[name] for name in FOR_CPU)
    found = (_either(each.name, each.state == "installed", each.version, NO_CPU, "missing") for each in packages)
    memory = Finding("memory", "ok", f"{_gib(machine.memory_bytes)} available")
    return (*found, memory, *_guarded(_plain(machine, model) if model else ()))


def findings_for_neuron(machine: Machine, model: Path | None = None) -> tuple[Finding, ...]:
    disk = Finding("disk", "note", f"{_gib(machine.cache_free_bytes)} free for compiled graphs in {machine.cache}")
    memory = Finding("memory", "ok", f"{_gib(machine.memory_bytes)} available")
    return (*_packages(machine), *_devices(machine), memory, disk, *_guarded(_export(machine, model) if model else ()))


def run(arguments: list[str], root: Path = Path("/"), site: Sequence[str] | None = None) -> int:
    """The verb. Exit code 0: something that was asked for can run; 1: nothing can. Bad usage leaves by SystemExit."""
    backends = {"cpu": findings_for_cpu, "neuron": findings_for_neuron}
    parser = argparse.ArgumentParser(prog="tokenclock-server check", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, metavar="DIR", help="a model folder that must be able to run")
    parser.add_argument("--backend", choices=backends, help="ask for this backend only")
    asked = parser.parse_args(arguments)
    machine = read(root, site=site)
    found = {name: backends[name](machine, asked.model) for name in backends if asked.backend in (None, name)}
    for name, findings in found.items():
        for each in findings:
            print(f"{name:6}  {each.verdict:7}  {each.subject:19}  {each.said}")
    able = [name for name, findings in found.items() if blocking(findings) is None]
    what = f"serve {asked.model} with" if asked.model else "run"
    print(f"this machine can {what}: {', '.join(able)}" if able else f"this machine cannot {what}: {', '.join(found)}")
    return 0 if able else 1


def _packages(machine: Machine) -> Iterator[Finding]:
    python, release = machine.python, machine.packages["optimum-neuron"].version or "0.4.5"
    remedy = f"{python.version}; optimum-neuron asks for {python.wanted}: make an environment of Python 3.11"
    yield _either("python", python.fits, python.version, remedy)
    for each in machine.packages.values():
        needed = each.name in FOR_NEURON
        asks = f"; optimum-neuron {release} asks for {each.wanted}" if each.wanted else ""
        if each.state == "installed":
            yield _either(each.name, each.fits, each.version, f"{each.version}{asks}", "note")
        elif needed or each.wanted or each.version:
            verdict: Verdict = "note" if not needed else "wrong" if each.version else "missing"
            yield Finding(each.name, verdict, f"{each.version or ''} {STATES[each.state]}{asks}".lstrip())
    if any(machine.packages[name].state != "installed" for name in FOR_NEURON):
        yield Finding("packages", "missing", f"Neuron's come from AWS's own index: {PIP.format(release)}")


def _devices(machine: Machine) -> Iterator[Finding]:
    families, runs = ", ".join(TARGETS), TARGETS.get((machine.instance or "").split(".")[0])
    if machine.neuron_major is None:
        remedy = f"install aws-neuronx-dkms on this {machine.instance}" if runs else f"start one of {families}"
        yield Finding("driver", "missing", f"/proc/devices names no neuron: {remedy}")
        return
    yield Finding("driver", "ok", f"{machine.driver or 'of unknown version'}, major {machine.neuron_major}")
    remedy = f"{machine.instance or 'unreadable in /sys, which a container may hide'}: it must be one of {families}"
    yield _either("instance", runs, machine.instance, remedy)
    remedy = "no /dev/neuron0: docker run --device /dev/neuron0, and so on for each"
    yield _either("devices", machine.devices > 0, f"{machine.devices} at /dev/neuron*", remedy, "missing")
    if machine.devices and machine.instance:
        said = _cores(machine)
        yield _either("cores", machine.cores == machine.all_cores, said, said, "note" if machine.cores else "wrong")
    remedy = f"{SYSFS} is hidden, which fails once the weights are loaded: docker run -v {SYSFS}:{SYSFS}:ro"
    yield _either("sysfs", machine.sysfs, "can be read", remedy)


def _export(machine: Machine, model: Path) -> Iterator[Finding]:
    absent = [name for name in (COMPILED, "config.json", "model.pt") if not (model / name).is_file()]
    if COMPILED in absent:
        here = f"{model} is not compiled for Neuron" if model.is_dir() else f"there is no folder {model}"
        raise ModelError(f"{here}: run tokenclock-server export --model {model} -o DIR")
    if absent:
        raise ModelError(f"{model} is half an export, without {' and '.join(absent)}: {AGAIN}")
    _, made = _object(model / "config.json"), _object(model / COMPILED)
    for name, version in ("optimum-neuron", "optimum_neuron_version"), ("neuronx-cc", "neuronxcc_version"):
        package, made_by = machine.packages[name], str(made.get(version, "of unknown version"))
        # What isn't installed is a finding already; the part after + names a build, which not all metadata has.
        good = package.state != "installed" or made_by.split("+")[0] == str(package.version).split("+")[0]
        remedy = f"{name} {made_by}, but {package.version} is installed: install what made it, or export again"
        yield _either("made by", good, f"{name} {made_by}", remedy)
    target, runs = f"compiled for {made.get('target')}", TARGETS.get((machine.instance or "").split(".")[0])
    remedy = f"{target}, but {machine.instance} runs {runs}: export again for this instance"
    yield _either("target", runs in (None, made.get("target")), target, remedy)
    ranks = int(made.get("tp_degree") or 1) * int(made.get("pp_degree") or 1) * int(made.get("ep_degree") or 1)
    said = f"needs {ranks} cores"
    enough = ranks <= (machine.cores or 0) or not (machine.devices and runs)  # else that is the finding
    yield _either("ranks", enough, said, f"{said}; {_cores(machine)}: give it more, or export again for fewer")
    if refused := refused_cores(machine.instance, ranks):
        yield Finding("ranks", "note", refused)
    slots = int(made.get("batch_size") or 1)
    remedy = f"{slots} without continuous_batching, where a prompt overwrites every slot: export again with it"
    alone = slots == 1 or made.get("continuous_batching") is True
    yield _either("slots", alone, f"{slots} of {made.get('sequence_length')} tokens", remedy)
    rows = int(made.get("max_batch_size") or slots)
    yield _either("rows", rows == slots, f"{rows} in the cache", f"{rows} in the cache for {slots} slots: export again")
    remedy = "tokens and logits, which optimum-neuron cannot take: export again without output_logits"
    yield _either("outputs", not made.get("output_logits"), "tokens or logits", remedy)
    yield _compiled_weights(machine, model, made, ranks)
    yield _tokenizer(model)


def _plain(machine: Machine, model: Path) -> Iterator[Finding]:
    if (model / COMPILED).is_file():
        raise ModelError(f"{model} is compiled for Neuron, which the cpu backend cannot run: name the source folder")
    config = _object(model / "config.json")
    files = weight_files(model)
    # As float32, whatever the files hold.
    size = _size(files) * (2 if (config.get("dtype") or config.get("torch_dtype")) in ("float16", "bfloat16") else 1)
    if not files:
        yield _no_weights()
    else:
        said = f"{_gib(size)} as float32"
        yield _either("weights", _fits(machine, size), said, said + _short(machine))
    yield _tokenizer(model)


def _compiled_weights(machine: Machine, model: Path, made: dict[str, Any], ranks: int) -> Finding:
    """Split already, one file a core; or whole, to be split at every load; or left on the hub."""
    folder = model / "checkpoint" if (model / "checkpoint").is_dir() else model
    split = "split in host memory at every load; export from a folder to store the shards"
    if shards := [*folder.glob("weights/tp*_sharded_checkpoint.safetensors")]:
        size, wanted = _size(shards), int(made.get("local_ranks_size") or ranks)
        if len(shards) < wanted:
            return Finding("weights", "wrong", f"{len(shards)} of {wanted} shards: {AGAIN}")
        said = f"{_gib(size)} in {len(shards)} shards"
        return _either("weights", _fits(machine, size), said, said + _short(machine), "note")
    if whole := weight_files(folder):
        said, fits = f"{_gib(_size(whole))} {split}", _fits(machine, _size(whole))
        return Finding("weights", "note", said) if fits else Finding("weights", "wrong", said + _short(machine))
    if folder is model and made.get("checkpoint_id"):
        return Finding("weights", "note", f"fetched from {made['checkpoint_id']} on the hub and {split}")
    return _no_weights()


def _no_weights() -> Finding:
    return Finding("weights", "missing", f"neither shards nor model.safetensors nor pytorch_model.bin: {AGAIN}")


def _tokenizer(model: Path) -> Finding:
    there = any((model / name).is_file() for name in TOKENIZERS)
    return _either("tokenizer", there, "here", f"none of {', '.join(TOKENIZERS)}: copy the source model's", "missing")


def _size(files: Iterable[Path]) -> int:
    return sum(each.stat().st_size for each in files)


def _fits(machine: Machine, size: int) -> bool:
    return machine.memory_bytes is None or size <= machine.memory_bytes


def _short(machine: Machine) -> str:
    return f", but {_gib(machine.memory_bytes)} of memory are available: free some, or take a larger machine"


def _guarded(findings: Iterable[Finding]) -> Iterator[Finding]:
    """Findings about a folder; what can't be read at all becomes the last."""
    try:
        yield from findings
    except ModelError as error:
        yield Finding("model", "wrong", str(error))
    except (OSError, TypeError, ValueError) as error:
        yield Finding("model", "wrong", f"it cannot be read ({error}): {AGAIN}")


def _object(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({error}): {AGAIN}") from error


def _cores(machine: Machine) -> str:
    told = {"NEURON_RT_NUM_CORES": machine.num_cores, "NEURON_RT_VISIBLE_CORES": machine.visible_cores}
    said = "".join(f", {name}={value}" for name, value in told.items() if value is not None)
    misread = said and (not machine.cores or "," in (machine.visible_cores or ""))
    hint = ": optimum-neuron reads one number, and a range such as 0-7 of visible ones" if misread else ""
    return f"{machine.cores or 0} of {machine.all_cores} visible{said}{hint}"


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:,.1f} GiB"


def _either(subject: str, good: object, well: str | None, badly: str, verdict: Verdict = "wrong") -> Finding:
    return Finding(subject, "ok", str(well)) if good else Finding(subject, verdict, badly)
