"""What a machine has is read from its files and its packages' metadata, and cores are counted as optimum-neuron does.

Method: a made-up machine (`worlds.py`). Cores are counted by optimum-neuron's own `utils/system.py` as well, which
imports nothing.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from server.machine import TARGETS, read
from tests.server.worlds import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize(
    ("instance", "devices", "cores"),
    [
        ("inf2.48xlarge", 12, 24),
        ("inf2.xlarge", 1, 2),
        ("trn1.32xlarge", 16, 32),
        ("trn1.2xlarge", 1, 2),
        ("trn2.48xlarge", 16, 64),
        ("inf2.xlarge", 0, 0),
    ],
)
def test_a_device_has_two_cores_and_a_second_generation_trainium_four(
    world: World, instance: str, devices: int, cores: int
):
    world.put_devices(instance, devices)
    machine = world.machine()
    assert (machine.devices, machine.all_cores, machine.cores, machine.instance) == (devices, cores, cores, instance)
    assert (machine.neuron_major, machine.driver) == (245, "2.22.2.0")


@pytest.fixture(scope="module")
def upstream() -> Path:
    """The folder of the installed optimum.neuron, none of which is imported as a package."""
    try:
        found = importlib.metadata.distribution("optimum-neuron")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("optimum-neuron is not installed: pip install 'tokenclock[neuron]'")
    return Path(str(found.locate_file("optimum/neuron")))


@pytest.fixture(scope="module")
def upstream_system(upstream: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("upstream_system", upstream / "utils/system.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("visible", [None, "0", "4", "0-23", "7-15", "0,1,2,3", "0-3,8-11", "9-2", "", "all"])
@pytest.mark.parametrize("reserved", [None, "1", "8", "24", "32", "0", "", "many"])
def test_cores_are_counted_as_optimum_neuron_counts_them(
    world: World,
    upstream_system: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    reserved: str | None,
    visible: str | None,
):
    monkeypatch.setattr(upstream_system, "get_neuron_devices_count", lambda: 12)
    monkeypatch.setattr(upstream_system, "cores_per_device", lambda: 2)
    for name, value in (("NEURON_RT_NUM_CORES", reserved), ("NEURON_RT_VISIBLE_CORES", visible)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
            world.environ[name] = value
    try:
        expected = max(0, upstream_system.get_available_cores())  # below nothing is nothing
    except ValueError:
        expected = None
    assert world.machine().cores == expected


def test_targets_are_those_of_optimum_neuron(upstream: Path):
    tree = ast.parse((upstream / "utils/instance.py").read_text(encoding="utf-8"))
    (told,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "INSTANCE_VALUE_MAP"
    ]
    assert told == TARGETS


def test_devices_do_not_count_without_a_driver(world: World):
    world.put("proc/devices", "Character devices:\n  1 mem\n")
    machine = world.machine()
    assert (machine.neuron_major, machine.devices, machine.cores) == (None, 0, 0)


@pytest.mark.parametrize(
    ("limit", "available"),
    [(None, 390070272 * 1024), ("max", 390070272 * 1024), ("2147483648", 2**31), (str(2**63 - 4096), 390070272 * 1024)],
)
@pytest.mark.parametrize("path", ["sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes"])
def test_a_containers_limit_caps_its_memory(world: World, path: str, limit: str | None, available: int):
    if limit is not None:
        world.put(path, f"{limit}\n")
    assert world.machine().memory_bytes == available


def test_an_empty_root_is_a_machine_with_nothing_known(tmp_path: Path):
    machine = read(tmp_path, {}, [])
    assert (machine.driver, machine.instance, machine.memory_bytes, machine.sysfs) == (None, None, None, False)
    assert (machine.devices, machine.cores) == (0, 0)
    assert machine.cache_free_bytes > 0
    assert {each.state for each in machine.packages.values()} == {"missing"}


def test_the_compile_cache_is_where_the_compiler_is_told_to_keep_it(world: World):
    assert world.machine().cache == Path("/var/tmp/neuron-compile-cache")
    world.environ["NEURON_CC_FLAGS"] = "--model-type=transformer --cache_dir=/data/cache -O1"
    assert world.machine().cache == Path("/data/cache")
