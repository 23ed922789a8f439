"""Keys and credentials are in no file, log, report or message, although the server repeats them in its refusals.

Method: real processes against a server that answers the first requests and then refuses each with a message that holds
every header it was sent; every byte that was printed or written is searched.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loadtest.truth import truth
from tests.e2e.conftest import ROOT, tokenclock
from tests.loadtest.sagemaker_fixtures import runtime

pytestmark = pytest.mark.e2e

KEY, COOKIE = 'sk-never"shown\\1234', "session=never-shown-either"
SECRETS = (KEY, json.dumps(KEY)[1:-1], "never-shown-either")
GOOD = 6  # requests that are answered: the first looks, and a few samples


@contextmanager
def repeating() -> Iterator[str]:
    """An OpenAI endpoint that says in its errors what it was sent."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self.reply(200, "application/json", json.dumps({"data": [{"id": "m"}]}).encode())
            else:
                self.reply(404, "application/json", b"{}")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            words = len(body["messages"][0]["content"].split()) if "messages" in body else 0
            asked.append(self.path)
            if len(asked) <= GOOD:
                chunk = {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]}
                usage = {"choices": [], "usage": {"prompt_tokens": words, "completion_tokens": 1}}
                events = "".join(f"data: {json.dumps(each)}\n\n" for each in (chunk, usage))
                self.reply(200, "text/event-stream", events.encode())
            else:
                said = "; ".join(f"{name}: {value}" for name, value in self.headers.items())
                self.reply(401, "application/json", json.dumps({"error": {"message": f"not with {said}"}}).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def written(folder: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


def clean(*texts: str) -> None:
    for text in texts:
        for secret in SECRETS:
            assert secret not in text
        assert "[hidden]" in text, "the server repeated it, and something stands in its place"


@pytest.mark.parametrize("how", ["option", "environment", "header"])
def test_a_run_shows_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str):
    given = {"option": ["--api-key", KEY], "header": ["--header", f"Authorization: Bearer {KEY}"]}.get(how, [])
    monkeypatch.setenv("OPENAI_API_KEY", KEY if how == "environment" else "none-such")
    with repeating() as url:
        sizes = ["-u", "1", "-t", "1s", "--input-tokens", "8", "--new-tokens", "1", "--results", str(tmp_path)]
        type_ = ["--endpoint-type", "openai-chat", "--header", f"Cookie: {COOKIE}"]
        done = tokenclock("run", "--url", url, *type_, *sizes, *given)
    assert done.returncode == 1, done.stderr
    assert "complete 3" in done.stdout
    for secret in SECRETS:
        assert secret not in done.stdout + done.stderr
    clean(written(tmp_path))


def test_a_refusal_of_the_first_request_shows_no_key(tmp_path: Path):
    with repeating() as url:
        sizes = ["-u", "1", "-t", "1s", "--input-tokens", "8", "--new-tokens", "1", "--results", str(tmp_path)]
        command = ["run", "--url", url, "--endpoint-type", "openai-completions", *sizes, "--api-key", KEY]
        tokenclock(*command[:-2])
        done = tokenclock(*command)
    assert done.returncode == 2
    assert "is --api-key right?" in done.stderr
    clean(done.stderr)


def test_locust_shows_no_key(tmp_path: Path):
    with repeating() as url:
        command = [sys.executable, "-m", "locust", "--headless", "-u", "1", "-r", "1", "-t", "6s", "--host", url]
        sizes = ["--input-tokens", "8", "--new-tokens", "1", "--results-dir", str(tmp_path / "raw")]
        files = ["--csv", str(tmp_path / "t"), "--html", str(tmp_path / "t.html"), "--json-file", str(tmp_path / "j")]
        type_ = ["--endpoint-type", "openai-chat", "--api-key", KEY, "--loglevel", "DEBUG"]
        done = subprocess.run(
            [*command, *sizes, *files, *type_], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
        )
    clean(written(tmp_path / "raw"), written(tmp_path))
    assert "401" in written(tmp_path)
    for secret in SECRETS:
        assert secret not in done.stdout + done.stderr


@pytest.mark.parametrize("transport", ["gevent", "boto3"])
def test_a_run_against_sagemaker_shows_no_credentials(tmp_path: Path, transport: str):
    token = "never-shown-either-session-token"
    with truth(first=0.01, gap=0.001) as container, runtime(container.url, session_token=token) as aws:
        wrong = aws.environ() | {"AWS_SECRET_ACCESS_KEY": "never-shown-either-secret"}
        sizes = ["-u", "1", "-t", "1s", "--input-tokens", "8", "--new-tokens", "2", "--results", str(tmp_path)]
        command = [
            sys.executable,
            "-m",
            "loadtest",
            "run",
            "--url",
            "sagemaker://good",
            "--transport",
            transport,
            *sizes,
        ]
        done, refused = (
            subprocess.run(
                command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT, env=os.environ | environ
            )
            for environ in (aws.environ(), wrong)
        )
    assert "complete" in done.stdout, done.stderr
    assert "InvalidSignatureException" in refused.stderr
    clean(refused.stderr)
    everything = written(tmp_path) + done.stdout + done.stderr + refused.stdout + refused.stderr
    for secret in (aws.access_key, aws.secret_key, token, "never-shown-either"):
        assert secret not in everything


@pytest.mark.parametrize("key", ["z", "7", "k-7", "EMPTY"])
def test_a_key_of_any_length_is_in_no_file_and_no_output_as_a_word(tmp_path: Path, key: str):
    with repeating() as url:
        sizes = ["-u", "1", "-t", "1s", "--input-tokens", "8", "--new-tokens", "1", "--results", str(tmp_path)]
        type_ = ["--endpoint-type", "openai-chat", "--api-key", key]
        done = tokenclock("run", "--url", url, *type_, *sizes)
    assert done.returncode == 1, done.stderr
    (folder,) = tmp_path.iterdir()
    details = [json.loads(line)["detail"] for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert any(
        "authorization: Bearer [hidden]" in (detail or "").lower().replace("bearer", "Bearer") for detail in details
    )
    said = re.compile(rf"(?i:bearer|key)\W{{1,4}}{re.escape(key)}(?![A-Za-z0-9])")
    for text in (written(tmp_path), done.stdout, done.stderr):
        assert not said.search(text)
    run = json.loads((folder / "run.json").read_text())
    assert key not in run["command"]


@pytest.mark.parametrize("option", ["--api-key", "--"])
def test_a_key_of_the_environment_in_a_servers_command_and_in_its_log_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    program = tmp_path / "serve.py"
    program.write_text(
        "import sys\n"
        "from loadtest.truth.__main__ import main\n"
        "key = sys.argv.pop(); sys.argv.pop()\n"
        "print(f'args: api_key={key}', file=sys.stderr, flush=True)\n"
        "sys.argv[1:] = ['--openai', '--first', '0.01', '--gap', '0.001', '--port', sys.argv[1]]\n"
        "main()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    serve = f"{sys.executable} {program} {{port}} {option} {shlex.quote(KEY)}"
    sizes = ["-u", "1", "-t", "1s", "--input-tokens", "8", "--new-tokens", "1", "--results", str(tmp_path / "results")]
    done = tokenclock("run", "--serve", serve, "--endpoint-type", "openai-chat", "--model", "truth", *sizes)
    assert done.returncode in (0, 1), done.stderr
    (folder,) = (tmp_path / "results").iterdir()
    assert "api_key=[hidden]" in (folder / "server-run.log").read_text()
    clean(written(tmp_path / "results"))
    for secret in SECRETS:
        assert secret not in done.stdout + done.stderr


def test_what_boto3_logs_under_locust_shows_no_credentials(tmp_path: Path):
    token = "never-shown-either-session-token"
    with truth(first=0.01, gap=0.001) as container, runtime(container.url, session_token=token) as aws:
        command = [sys.executable, "-m", "locust", "--headless", "-u", "1", "-r", "1", "-t", "2s"]
        where = ["--host", "sagemaker://good", "--transport", "boto3", "--loglevel", "DEBUG"]
        sizes = ["--input-tokens", "8", "--new-tokens", "1", "--results-dir", str(tmp_path)]
        done = subprocess.run(
            [*command, *where, *sizes],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=ROOT,
            env=os.environ | aws.environ(),
        )
    assert "x-amz-security-token" in done.stderr.lower(), "botocore's log is there, and has the header"
    for secret in (aws.access_key, aws.secret_key, token):
        assert secret not in done.stdout + done.stderr + written(tmp_path)


def test_values_that_look_like_ours_cost_nothing(tmp_path: Path):
    """They are hidden where they are repeated, and numbers, phases, protocols and verdicts are no repetitions."""
    with truth(first=0.01, gap=0.001) as server:
        odd = (
            "--header",
            "x-priority: steady",
            "--header",
            "x-mode: streamed",
            "--header",
            "x-key: tgi",
            "--api-key",
            "000000",
        )
        sizes = ("-u", "1", "-t", "1s", "--input-tokens", "8", "--new-tokens", "2", "--results", str(tmp_path))
        done = tokenclock("run", "--url", server.url, *odd, *sizes)
    assert "failed" in done.stdout, done.stderr
    (folder,) = tmp_path.iterdir()
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert {sample["phase"] for sample in samples} >= {"warmup", "steady"}
    assert {sample["verdict"] for sample in samples} == {"complete"}
    run = json.loads((folder / "run.json").read_text())
    assert run["options"]["api_key"] == "[hidden]"
    assert run["endpoints"][0]["protocol"] == "tgi"
    assert "000000" not in run["command"]
