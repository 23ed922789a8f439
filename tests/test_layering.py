"""The import rules of the two halves, read from the source: who may import whom, and what must stay optional.

Method: the syntax tree of every module; an import inside a function or under TYPE_CHECKING isn't run by `import
server`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HALVES = ("server", "loadtest")
MODULES = sorted(path for half in HALVES for path in (ROOT / half).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

#: Pure modules: the standard library, numpy, and these of their own half. Clocks and randomness come in as arguments.
PURE = {
    "server/engine/scheduler.py": set(),
    "server/backends/device_sampling.py": {"server.backends.base"},
    "server/api/openai/stops.py": set(),
    "loadtest/sse.py": set(),
    "loadtest/verdict.py": set(),
    "loadtest/plan.py": set(),
    "loadtest/prompts.py": {"loadtest.plan"},
    "loadtest/datasets.py": {"loadtest.endpoints.base", "loadtest.plan"},
    "loadtest/arrivals.py": set(),
    "loadtest/sample.py": {"loadtest.plan", "loadtest.verdict"},
    "loadtest/kept.py": {"loadtest.endpoints.base", "loadtest.plan", "loadtest.sample"},
    "loadtest/stats.py": {"loadtest.sample", "loadtest.plan", "loadtest.verdict"},
    "loadtest/trust.py": {"loadtest.stats", "loadtest.sample", "loadtest.plan", "loadtest.verdict"},
    "loadtest/live/histogram.py": set(),
    "loadtest/live/state.py": {"loadtest.live.histogram", "loadtest.verdict"},
    "loadtest/live/rates.py": {"loadtest.live.state", "loadtest.verdict"},
    "loadtest/live/health.py": {
        "loadtest.live.histogram",
        "loadtest.live.state",
        "loadtest.stats",
        "loadtest.trust",
    },
    "loadtest/distributed/shipping.py": set(),
    "loadtest/calibrate/errors.py": {"loadtest.stats", "loadtest.trust", "loadtest.sample"},
    "loadtest/calibrate/shape.py": {"loadtest.stats", "loadtest.arrivals", "loadtest.plan", "loadtest.sample"},
    "loadtest/calibrate/search.py": set(),
    "loadtest/probe/findings.py": {
        "loadtest.stats",
        "loadtest.trust",
        "loadtest.probe.witness",
        "loadtest.report.numbers",
        "loadtest.verdict",
    },
    "loadtest/probe/waterfall.py": {"loadtest.report.numbers"},
    "loadtest/split/by_request.py": {"loadtest.stats", "loadtest.sample"},
    "loadtest/split/averages.py": {"loadtest.stats", "loadtest.sample"},
    "loadtest/compare/intervals.py": set(),
    "loadtest/compare/measures.py": {"loadtest.stats"},
    "loadtest/compare/blocks.py": {
        "loadtest.compare.intervals",
        "loadtest.compare.measures",
        "loadtest.sample",
        "loadtest.stats",
    },
    "loadtest/compare/sides.py": {"loadtest.sample"},
    "loadtest/compare/differences.py": {
        "loadtest.compare.blocks",
        "loadtest.compare.intervals",
        "loadtest.compare.measures",
        "loadtest.compare.sides",
    },
    "loadtest/compare/gate.py": {
        "loadtest.compare.differences",
        "loadtest.compare.intervals",
        "loadtest.compare.measures",
    },
    "loadtest/compare/reference.py": set(),
    "loadtest/compare/published.py": {"loadtest.compare.reference"},
    "loadtest/batch_means.py": {"loadtest.compare.intervals", "loadtest.sample", "loadtest.stats"},
    "loadtest/goodput.py": {"loadtest.sample", "loadtest.stats"},
    "loadtest/gaps.py": set(),
    "loadtest/condensed.py": {"loadtest.gaps", "loadtest.stats", "loadtest.sample", "loadtest.plan"},
    "loadtest/summary.py": {
        "loadtest.batch_means",
        "loadtest.condensed",
        "loadtest.gaps",
        "loadtest.datasets",
        "loadtest.goodput",
        "loadtest.split.averages",
        "loadtest.split.by_request",
        "loadtest.stats",
        "loadtest.trust",
        "loadtest.sample",
        "loadtest.plan",
        "loadtest.verdict",
    },
}
#: What one of them needs beyond numpy: functions of numbers, too.
PURE_WITH = {"loadtest/compare/intervals.py": {"scipy"}}
#: Standard modules that would make a pure one impure: clocks, sockets, threads, the file system's state.
IMPURE = {"time", "datetime", "socket", "threading", "asyncio", "subprocess", "os", "secrets"}
#: Heavy or optional: never imported by `import server.app` or `import loadtest.measure`.
HEAVY = {"torch", "transformers", "optimum", "botocore", "boto3", "matplotlib", "scipy"}
MAY_IMPORT_HEAVY = {
    f"server/backends/{name}.py"
    for name in ("transformers_cpu", "kv_rows", "passes", "recording", "neuron", "sampling")
}
LOCUST = {"loadtest/runner.py", "loadtest/locustfile.py"}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def not_run_by_import(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def imports(path: Path, executed_only: bool = False) -> Iterator[str]:
    """Dotted names of imported modules; with `executed_only`, those that importing the module runs."""

    def walk(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{name(path)} has a relative import"
                yield child.module or ""
                yield from (f"{child.module}.{alias.name}" for alias in child.names)
            elif executed_only and not_run_by_import(child):
                continue
            else:
                yield from walk(child)

    return walk(ast.parse(path.read_text(encoding="utf-8")))


def roots(path: Path, executed_only: bool = False) -> set[str]:
    return {module.split(".")[0] for module in imports(path, executed_only)}


def test_there_is_something_to_check():
    assert len(MODULES) > 30
    assert {name(path) for path in MODULES} >= set(PURE) | MAY_IMPORT_HEAVY | LOCUST


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_the_halves_never_import_each_other(path: Path):
    half = name(path).split("/")[0]
    assert roots(path) & (set(HALVES) - {half} | {"tests", "benchmarks"}) == set()


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_only_contract_and_end_to_end_tests_see_both_halves(path: Path):
    if name(path).startswith(("tests/contract/", "tests/e2e/", "tests/test_")):  # of the whole tree
        return
    assert len(roots(path) & set(HALVES)) <= 1


@pytest.mark.parametrize("module", sorted(PURE))
def test_pure_modules_stay_pure(module: str):
    found = set(imports(ROOT / module))
    foreign = {each.split(".")[0] for each in found} - set(sys.stdlib_module_names) - {"numpy", "orjson", *HALVES}
    foreign -= PURE_WITH.get(module, set())
    assert foreign == set()
    assert {each.split(".")[0] for each in found} & IMPURE == set()
    own = {each for each in found if each.split(".")[0] in HALVES}
    allowed = PURE[module] | {"loadtest"}
    assert {each for each in own if not any(each == a or each.startswith(f"{a}.") for a in allowed - {"loadtest"})} <= {
        "loadtest"
    }


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_heavy_packages_are_imported_where_they_are_used(path: Path):
    if name(path) not in MAY_IMPORT_HEAVY:
        assert roots(path, executed_only=True) & HEAVY == set()


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_locust_is_imported_by_the_runner_and_the_locustfile_only(path: Path):
    if name(path) not in LOCUST:
        assert "locust" not in roots(path)


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_optimum_neuron_is_imported_by_its_backend_only(path: Path):
    if name(path) != "server/backends/neuron.py":
        assert not any(module.startswith("optimum") for module in imports(path))


@pytest.mark.parametrize(
    "entry", ["server.app", "server.lifecycle", "loadtest", "loadtest.measure", "loadtest.report", "loadtest.__main__"]
)
def test_importing_an_entry_point_loads_nothing_heavy(entry: str):
    # The syntax tree can't see what a dependency pulls in; a fresh interpreter can.
    program = f"import sys, {entry}; print(*sorted({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize(
    ("entry", "missing", "extra"),
    [
        ("server serve", "fastapi", "tokenclock[cpu]"),
        ("server serve --port 0", "torch", "tokenclock[cpu]"),
        ("loadtest run --plan published --url http://127.0.0.1:1", "locust", "tokenclock[loadtest]"),
        ("loadtest calibrate -u 1 -t 1s --no-search", "rich", "tokenclock[loadtest]"),
    ],
)
def test_a_missing_extra_is_one_sentence_naming_the_pip_command(entry: str, missing: str, extra: str, tmp_path: Path):
    blocked = f"import sys; sys.modules['{missing}'] = None; import runpy; sys.argv = {entry.split()!r}; "
    program = blocked + f"runpy.run_module('{entry.split()[0]}', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
    )
    assert done.returncode == 2, done.stderr
    assert f"{missing} is not installed: pip install '{extra}'" in done.stderr
    assert "Traceback" not in done.stderr
