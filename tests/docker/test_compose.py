"""What `docker compose up` brings up keeps its promises on a real engine: it serves, is watched, is loaded, dies and
comes back, grows, and leaves nothing.

Method: the repository's own compose.yaml as a project of its own, on free ports of loopback; everything is asked
through the published ports or by docker itself. Sums in Prometheus are compared with samples.jsonl exactly. The tests
build on one another, in this order.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[2]
STAND_INS = "tests/docker/compose.stand-ins.yaml"
MACHINES = "docker/compose.machines.yaml"
TARGET = ("--url", "http://server:8080", "--no-calibrate")
KEY = "the-project-s-key"
PORTS = ("SERVER_PORT", "PROMETHEUS_PORT", "LOCUST_PORT")


def engine() -> str | None:
    """Why there is none that could be used; None: there is one."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    for what, command in (("Docker engine answers", ["info"]), ("compose plugin", ["compose", "version"])):
        if subprocess.run(["docker", *command], capture_output=True, check=False).returncode:
            return f"no {what} here"
    return None


pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(500),  # the first one builds the images
    pytest.mark.skipif((missing := engine()) is not None, reason=missing or ""),
]


def until(true: Callable[[], object], what: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


class Project:
    """A compose project of this test, and what can be asked of it from outside."""

    def __init__(self) -> None:
        self.name = f"tokenclock-test-{os.getpid()}"
        taken = [socket.create_server(("127.0.0.1", 0)) for _ in PORTS]
        ports = {name: str(each.getsockname()[1]) for name, each in zip(PORTS, taken, strict=True)}
        for each in taken:
            each.close()
        self.environment = os.environ | ports | {"TOKENCLOCK_API_KEY": KEY, "TOKENCLOCK_THREADS": "1"}
        server, self._prometheus, locust = (f"http://127.0.0.1:{ports[name]}" for name in PORTS)
        self.server = httpx.Client(base_url=server, headers={"authorization": f"Bearer {KEY}"}, timeout=60)
        self.locust = httpx.Client(base_url=locust, timeout=60)

    def command(self, *arguments: str, files: tuple[str, ...] = (), name: str | None = None) -> list[str]:
        named = [part for file in ("compose.yaml", STAND_INS, *files) for part in ("--file", file)]
        return ["docker", "compose", "--project-name", name or self.name, *named, *arguments]

    def __call__(
        self, *arguments: str, files: tuple[str, ...] = (), name: str | None = None, environment: Any = None
    ) -> bytes:
        """What `docker compose` printed. A failure fails the test with the end of its words."""
        done = subprocess.run(
            self.command(*arguments, files=files, name=name),
            cwd=ROOT,
            env=self.environment | (environment or {}),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stderr.decode()[-3000:]}"
        return done.stdout

    def inspected(self, service: str) -> dict[str, Any]:
        """docker's description of a service's container."""
        container = self("ps", "--all", "--quiet", service).decode().split()
        described = subprocess.run(["docker", "inspect", *container], capture_output=True, check=True).stdout
        [only] = json.loads(described)
        return dict(only)

    def ask(self, query: str) -> float:
        """The sum of what Prometheus answers; 0 where it has nothing."""
        reply = httpx.get(f"{self._prometheus}/api/v1/query", params={"query": query}, timeout=30).json()
        assert reply["status"] == "success", reply
        return sum(float(each["value"][1]) for each in reply["data"]["result"])

    def wait_for(self, query: str, value: float) -> None:
        deadline = time.monotonic() + 90
        while (seen := self.ask(query)) != value:
            assert time.monotonic() < deadline, f"{query} is {seen}, not {value}"
            time.sleep(0.2)

    def counted(self, series: str) -> float:
        """A series without labels, from the server's own page: Prometheus may not have it yet."""
        found = re.search(rf"^{series} (\S+)$", self.server.get("/metrics").text, re.M)
        assert found is not None, series
        return float(found[1])

    def run(self, *arguments: str) -> tuple[int, list[dict[str, Any]]]:
        """`tokenclock run` in a container: its exit code, and the samples it left."""
        command = self.command("run", "--rm", "-T", "--use-aliases", "tokenclock", "run", *TARGET, *arguments)
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)
        return done.returncode, self.samples(done.stdout + done.stderr)

    def samples(self, said: str) -> list[dict[str, Any]]:
        """Of the run that named its report in what it said."""
        found = re.search(r"report: (\S+)/report.md", said)
        assert found is not None, said[-3000:]
        packed = self("run", "--rm", "-T", "--entrypoint", "tar", "tokenclock", "-c", found[1])
        with tarfile.open(fileobj=io.BytesIO(packed)) as unpacked:
            lines = unpacked.extractfile(f"{found[1]}/samples.jsonl")
            assert lines is not None
            return [json.loads(line) for line in lines]

    def streamed(self, new_tokens: int, seen: Callable[[int], object] = lambda number: None) -> int:
        """Events with a token of a stream of so many; `seen` hears the number of each."""
        body = {"inputs": "The clock", "parameters": {"max_new_tokens": new_tokens, "ignore_eos": True}}
        events = 0
        with self.server.stream("POST", "/generate_stream", json=body) as reply:
            assert reply.status_code == 200, reply.read()
            for line in reply.iter_lines():
                if line.startswith("data:") and "token" in json.loads(line[5:]):
                    events += 1
                    seen(events)
        return events

    def gateway(self) -> str:
        """The address of the host, as containers have it."""
        hosts = self("exec", "-T", "prometheus", "cat", "/etc/hosts").decode()
        return next(line.split()[0] for line in hosts.splitlines() if line.endswith("host.docker.internal"))

    def ready(self) -> bool:
        try:
            return self.server.get("/health").status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def project() -> Iterator[Project]:
    project = Project()
    try:
        project("--profile", "load", "build", "--quiet")
        project("up", "--detach", "--wait")
        yield project
    finally:
        subprocess.run(
            project.command("--profile", "*", "down", "--volumes", "--timeout", "5", "--remove-orphans"),
            cwd=ROOT,
            env=project.environment,
            capture_output=True,
            check=False,
        )
        project.server.close()
        project.locust.close()


def test_containers_are_healthy_and_may_do_little(project: Project):
    for service, user in (("server", "10001"), ("prometheus", "65534")):
        container = project.inspected(service)
        assert container["State"]["Health"]["Status"] == "healthy"
        assert container["Config"]["User"] == user
        host = container["HostConfig"]
        assert (host["ReadonlyRootfs"], host["CapDrop"]) == (True, ["ALL"])
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert host["Memory"] > 0
        [[published]] = [each for each in container["NetworkSettings"]["Ports"].values() if each]
        assert published["HostIp"] == "127.0.0.1"


def test_no_compiler_is_inside(project: Project):
    tools = "for each in cc gcc g++ c++ clang ld as make; do command -v $each; done; ls /opt/tokenclock/bin"
    for image in ("tokenclock-server", "tokenclock-loadtest"):
        command = ["docker", "run", "--rm", "--entrypoint", "sh", image, "-c", tools]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert "python" in found
        assert not any(each.startswith(("/", "pip")) for each in found), found


def test_tokens_stream_through_the_published_port(project: Project):
    assert project.streamed(20) == 20
    assert httpx.post(project.server.base_url.join("/generate"), json={"inputs": "The clock"}).status_code == 401


def test_a_plan_run_in_a_container_left_samples_of_all_that_the_server_counted(project: Project):
    """The counts of both halves, which share no code: the load tester's in its samples, the server's in Prometheus."""
    project.wait_for("tokenclock_output_tokens_total", 20)
    input_before = project.counted("tokenclock_input_tokens_total")
    code, samples = project.run("--plan", "published", "--config", "L", "--waves", "1")
    assert Counter(sample["verdict"] for sample in samples) == {"complete": 12}
    assert code in (0, 1)  # 1: on a busy machine the client says that it was too slow
    input_tokens, new_tokens = (
        sum(sample["got"][name] for sample in samples) for name in ("input_tokens", "new_tokens")
    )
    assert new_tokens == 2 * (1 + 1 + 1 + 256 + 512 + 768)  # a wave to warm up, and one
    project.wait_for("tokenclock_output_tokens_total", 20 + new_tokens)
    assert project.ask("tokenclock_input_tokens_total") == input_before + input_tokens
    assert project.ask("sum(tgi_request_success)") == 1 + len(samples)
    # The container is gone with its series; what was scraped last is all of them, or a little less.
    scraped = project.ask('max_over_time(tokenclock_tokens_total{kind="output",instance="tokenclock:9646"}[10m])')
    assert 0 < scraped <= new_tokens


def test_prometheus_sees_a_locust_on_the_host_and_both_halves_count_the_same(project: Project, tmp_path: Path):
    before = project.counted("tokenclock_output_tokens_total")
    with locust_on_the_host(project, project.gateway(), tmp_path):
        until(lambda: [*tmp_path.glob("*/report.md")], "the test never ended")
        [file] = tmp_path.glob("*/samples.jsonl")
        samples = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        assert len(samples) > 2
        new_tokens = sum(sample["got"]["new_tokens"] for sample in samples)
        project.wait_for('tokenclock_tokens_total{kind="output"}', new_tokens)
        project.wait_for("tokenclock_output_tokens_total", before + new_tokens)
        verdicts = Counter(sample["verdict"] for sample in samples)
        for verdict, count in verdicts.items():
            assert project.ask(f'tokenclock_requests_total{{verdict="{verdict}"}}') == count
        assert project.ask("sum(tokenclock_requests_total)") == len(samples)
        assert project.ask("tokenclock_ttft_seconds_count") == sum(bool(sample["events"]) for sample in samples)
        ttft_s = sum((sample["events"][0][0] - sample["started_ns"]) / 1e9 for sample in samples if sample["events"])
        assert project.ask("tokenclock_ttft_seconds_sum") == pytest.approx(ttft_s)


@contextmanager
def locust_on_the_host(project: Project, address: str, results: Path) -> Iterator[None]:
    """Plain `locust` with its page, whose test begins at once and is over after some seconds; then it waits."""
    options = ["--autostart", "--run-time", "4", "--users", "2", "--web-port", "0", "--new-tokens", "20"]
    running = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "locust",
            *options,
            "--host",
            str(project.server.base_url),
            "--results-dir",
            str(results),
        ],
        cwd=ROOT,
        env=project.environment
        | {"HF_TOKEN": KEY, "TOKENCLOCK_METRICS_HOST": address, "TOKENCLOCK_METRICS_PORT": "9646"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        running.terminate()
        running.wait(30)


def test_a_server_killed_mid_stream_is_told_by_verdict_and_alert_until_it_is_back(project: Project):
    loading = f"{project.name}-loading"
    command = project.command("run", "--rm", "-T", "--name", loading, "tokenclock", "run", *TARGET)
    running = subprocess.Popen(
        [*command, "-u", "2", "-t", "5m", "--new-tokens", "400"],
        cwd=ROOT,
        env=project.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until(lambda: project.counted("tokenclock_slots_in_use") == 2, "nobody streams")
    project("kill", "--signal", "KILL", "server")
    project.wait_for('ALERTS{alertname="ServerDown",alertstate="firing"}', 1)
    project("up", "--detach", "--wait", "server")
    until(lambda: project.counted("tgi_request_success") > 0, "nobody came back")
    project.wait_for('ALERTS{alertname="ServerDown"}', 0)
    subprocess.run(["docker", "kill", "--signal", "TERM", loading], check=True, capture_output=True)
    said, _ = running.communicate(timeout=100)
    assert running.returncode == 130, said
    verdicts = Counter(sample["verdict"] for sample in project.samples(said))
    assert verdicts["truncated"] + verdicts["connection"] >= 2, verdicts
    assert verdicts["complete"] >= 1, verdicts


def test_a_server_told_to_stop_finishes_its_stream_and_one_that_dies_is_restarted(project: Project):
    stopping: list[subprocess.Popen[bytes]] = []

    def stop(event: int) -> None:
        if event == 1:
            command = project.command("stop", "server")
            stopping.append(subprocess.Popen(command, cwd=ROOT, env=project.environment, stderr=subprocess.DEVNULL))

    assert project.streamed(300, stop) == 300
    assert stopping[0].wait(60) == 0
    state = project.inspected("server")["State"]
    assert (state["Status"], state["ExitCode"], state["OOMKilled"]) == ("exited", 0, False)
    project("up", "--detach", "--wait", "server")
    assert project.streamed(5) == 5

    # All of the container's processes but the first, which ends with them, and this one's own.
    command = project.command("exec", "-T", "server", "bash", "-c", "kill -9 -1")
    subprocess.run(command, cwd=ROOT, env=project.environment, capture_output=True, check=False)
    until(lambda: project.inspected("server")["RestartCount"] == 1, "it was not restarted")
    until(project.ready, "it did not come back")
    assert project.streamed(5) == 5


def test_workers_come_and_go_and_one_on_another_machine_joins(project: Project):
    """The other machine is a project of its own, which reaches the master by the address of this host."""
    workers = lambda: int(project.locust.get("/stats/requests").json()["worker_count"])  # noqa: E731
    project("--profile", "load", "up", "--detach", "--wait", "--scale", "locust-worker=2")
    until(lambda: workers() == 2, "two workers did not come")
    project.locust.post("/swarm", data={"user_count": "4", "spawn_rate": "4", "new_tokens": "8"}).raise_for_status()
    until(lambda: _total(project.locust)["num_requests"] >= 4, "nothing was measured")
    project.locust.post("/stop").raise_for_status()
    until(lambda: "report: " in project("logs", "locust-master").decode(), "it never ended")
    samples = project.samples(project("logs", "--no-log-prefix", "locust-master").decode())
    assert {sample["process"] for sample in samples} == {0, 1}
    assert Counter(sample["verdict"] for sample in samples) == {"complete": len(samples)}
    project.wait_for('tokenclock_requests_total{instance="locust-master:9646",verdict="complete"}', len(samples))
    tokens = 'tokenclock_tokens_total{instance="locust-master:9646",kind="output"}'
    assert project.ask(tokens) == sum(sample["got"]["new_tokens"] for sample in samples) == 8 * len(samples)
    project("--profile", "load", "up", "--detach", "--wait", "--scale", "locust-worker=1")
    until(lambda: workers() == 1, "one worker did not go")

    here = project.gateway()
    listening = {"LISTEN": here}
    renewed = ("locust-master", "prometheus")
    project("up", "--detach", "--wait", "--no-deps", *renewed, files=(MACHINES,), environment=listening)
    until(lambda: workers() == 1, "the worker did not find the new master")
    project.wait_for('up{instance="locust-master:9646"}', 1)  # by the address that others have of it
    there = f"{project.name}-there"
    joining = listening | {"MASTER_HOST": here}
    try:
        one = ("--no-deps", "--scale", "locust-worker=1", "locust-worker")
        project("up", "--detach", *one, name=there, environment=joining)
        until(lambda: workers() == 2, "the worker of the other machine did not join")
    finally:
        project("--profile", "*", "down", "--volumes", "--timeout", "5", name=there)


def _total(locust: httpx.Client) -> dict[str, Any]:
    [total] = [row for row in locust.get("/stats/requests").json()["stats"] if row["name"] == "Aggregated"]
    return dict(total)


def test_down_leaves_nothing(project: Project):
    project("--profile", "*", "down", "--volumes")
    for listed in (["ps", "--all"], ["volume", "ls"], ["network", "ls"]):
        command = ["docker", *listed, "--quiet", "--filter", f"label=com.docker.compose.project={project.name}"]
        assert subprocess.run(command, capture_output=True, check=True).stdout == b""
