"""What this machine has that a backend needs, read without importing anything heavy.

Only files and package metadata are read, so that a package which raises on import is recognised like any other.
Source: huggingface/optimum-neuron v0.4.5, utils/system.py, utils/neuron_device_memory.py and utils/cache_utils.py.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

#: What PyPI's stand-ins for AWS's packages say in their description (and on import, where their folder's name allows
#: one). Source: PyPI's torch-neuronx 1.0, neuronx-cc 1.0.post1, libneuronxla 1.0, neuronx-distributed 0.1, nki 0.0.1.
PLACEHOLDER = "WRONG PACKAGE"
#: Distributions that are looked at whether or not optimum-neuron asks for them, and what each is imported as.
IMPORTED_AS = {
    name: {"optimum-neuron": "optimum", "neuronx-cc": "neuronxcc"}.get(name, name.replace("-", "_"))
    for name in "optimum-neuron transformers torch torch-neuronx torch-xla neuronx-cc neuronx-distributed "
    "libneuronxla nki".split()
}
TARGETS = {"inf2": "trn1", "trn1": "trn1", "trn1n": "trn1", "trn2": "trn2"}  # what is compiled for an instance
TRN1_CORES = (1, 2, 8, 16)  # or a multiple of 32. Source: the runtime's message in huggingface/optimum-neuron#619
#: Without these nothing loads; what else optimum-neuron asks for is only noted.
FOR_CPU = ("torch", "transformers")
FOR_NEURON = (*FOR_CPU, *"optimum-neuron torch-neuronx torch-xla neuronx-cc neuronx-distributed libneuronxla".split())
PIP = "pip install --extra-index-url https://pip.repos.neuron.amazonaws.com 'optimum-neuron[neuronx]=={}'"
State = Literal["installed", "missing", "placeholder", "unimportable"]


@dataclass(frozen=True, slots=True)
class Package:
    name: str
    version: str | None  # None: not installed
    state: State = "installed"
    wanted: str = ""  # the versions that optimum-neuron's metadata asks for; empty: any
    fits: bool = True  # `version` is one of them


@dataclass(frozen=True, slots=True)
class Machine:
    python: Package
    packages: Mapping[str, Package]
    neuron_major: int | None  # of /dev/neuron*; None: no driver is loaded
    driver: str | None  # its version; None: unreadable
    instance: str | None  # such as inf2.48xlarge; None: unreadable
    devices: int
    num_cores: str | None  # NEURON_RT_NUM_CORES as it stands; None: not set
    visible_cores: str | None  # NEURON_RT_VISIBLE_CORES as it stands; None: not set
    sysfs: bool  # the driver's counters can be read
    memory_bytes: int | None  # available, and at most a container's limit; None: unknown
    cache: Path  # of compiled graphs
    cache_free_bytes: int | None  # None: unknown

    @property
    def all_cores(self) -> int:
        return self.devices * (4 if (self.instance or "").startswith("trn2") else 2)

    @property
    def cores(self) -> int | None:
        """Cores that optimum-neuron will count: it takes any comma list for one core. None: it would raise."""
        if self.devices and self.instance is None:
            return None
        try:
            count = self.all_cores if self.num_cores is None else min(int(self.num_cores), self.all_cores)
            if self.visible_cores is None:
                return max(0, count)
            first, dash, last = self.visible_cores.partition("-")
            return max(0, min(int(last) - int(first) + 1 if dash else 1, count))
        except ValueError:
            return None


def refused_cores(instance: str | None, cores: int) -> str | None:
    """Why trn1's runtime won't run a model on so many cores. None: it will, or no rule is known."""
    if not (instance or "").startswith("trn1") or cores in TRN1_CORES or cores % 32 == 0:
        return None
    return f"trn1's runtime takes {', '.join(map(str, TRN1_CORES))} or a multiple of 32, not {cores}"


def read(root: Path = Path("/"), environ: Mapping[str, str] = os.environ, site: Sequence[str] | None = None) -> Machine:
    """The machine whose file system is at `root` and whose packages are in the folders `site` (None: sys.path)."""
    major = next(iter(re.findall(r"(?m)^\s*(\d+)\s+neuron\s*$", _text(root / "proc/devices") or "")), None)
    cached = re.search(r"--cache_dir=([\w/-]+)", environ.get("NEURON_CC_FLAGS", ""))
    cache = Path(cached.group(1) if cached else "/var/tmp/neuron-compile-cache")  # noqa: S108  # not ours
    here = root / str(cache).lstrip("/")  # where that lies under `root`
    return Machine(
        *_packages(site),
        neuron_major=None if major is None else int(major),
        driver=_text(root / "sys/module/neuron/version"),
        instance=_text(root / "sys/devices/virtual/dmi/id/product_name"),
        devices=0 if major is None else sum(each.name[6:].isdecimal() for each in (root / "dev").glob("neuron*")),
        num_cores=environ.get("NEURON_RT_NUM_CORES"),
        visible_cores=environ.get("NEURON_RT_VISIBLE_CORES"),
        sysfs=(root / "sys/devices/virtual/neuron_device").is_dir(),
        memory_bytes=min(_memory_limits(root), default=None),
        cache=cache,
        cache_free_bytes=_free(here),
    )


def _free(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(next(each for each in (folder, *folder.parents) if each.is_dir())).free
    except OSError:  # a parent that may not be entered
        return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _memory_limits(root: Path) -> Iterator[int]:
    for kib in re.findall(r"(?m)^MemAvailable:\s*(\d+) kB$", _text(root / "proc/meminfo") or ""):
        yield int(kib) * 1024
    for limit in ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"):  # version 2, version 1
        if (text := _text(root / limit) or "").isdecimal():
            yield int(text)


def _packages(site: Sequence[str] | None) -> tuple[Package, dict[str, Package]]:
    """Python itself, and the packages of IMPORTED_AS and of optimum-neuron's requirements by their names."""
    upstream = _distribution("optimum-neuron", site)
    version = platform.python_version()
    asked = upstream.metadata["Requires-Python"] or "" if upstream else "<3.12,>=3.10"  # 0.4.5's
    wanted = dict.fromkeys(IMPORTED_AS, "")
    if upstream:
        from packaging.requirements import Requirement  # optimum-neuron's own dependency

        for each in map(Requirement, upstream.requires or ()):
            if each.marker is None or each.marker.evaluate({"extra": "neuronx"}):
                wanted[each.name.lower().replace("_", "-")] = str(each.specifier)
    packages = {name: _package(name, asked, site) for name, asked in wanted.items()}
    return Package("python", version, wanted=asked, fits=_fits(version, asked)), packages


def _package(name: str, wanted: str, site: Sequence[str] | None) -> Package:
    found = _distribution(name, site)
    if found is None or not found.version:  # what an interrupted uninstall leaves has none
        return Package(name, None, "missing", wanted)
    module = IMPORTED_AS.get(name)
    lost = module and (find_spec(module) if site is None else PathFinder.find_spec(module, site)) is None
    placeholder = PLACEHOLDER in (found.read_text("METADATA") or "")
    state: State = "placeholder" if placeholder else "unimportable" if lost else "installed"
    return Package(name, found.version, state, wanted, _fits(found.version, wanted))


def _distribution(name: str, site: Sequence[str] | None) -> metadata.Distribution | None:
    return next(iter(metadata.distributions(name=name, path=list(sys.path if site is None else site))), None)


def _fits(version: str, wanted: str) -> bool:
    try:
        from packaging.specifiers import SpecifierSet
    except ModuleNotFoundError:  # transformers brings it, so that is missing too, and is the finding
        return True
    return SpecifierSet(wanted).contains(version, prereleases=True)
