"""What the OpenAPI description says is what happens: no 5xx, no status, content type or shape that it doesn't name.

Method: schemathesis, which makes requests from the description, good ones and bad ones, against the served model.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.settings import Settings

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


@pytest.fixture(scope="module")
def served(serve: Any, demo_folder: Path) -> Iterator[httpx.Client]:
    """Short texts: a request without a length takes all there is."""
    with serve(Settings(model=str(demo_folder), max_total_tokens=32, threads=1)) as client:
        yield client


@pytest.mark.e2e
@pytest.mark.timeout(300)
def test_every_route_answers_as_described(served: httpx.Client, tmp_path: Path):
    command = [str(Path(sys.executable).with_name("st")), "run", f"{served.base_url}/openapi.json"]
    command += ["--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"]
    command += ["--max-examples", "30", "--seed", "7", "--no-color", "--suppress-health-check", "filter_too_much"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=280)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    # It would pass against a server that refuses everything, too.
    assert int(re.search(r"(\d+) generated", done.stdout)[1]) > 1000  # type: ignore[index]
    metrics = served.get("/metrics").text.splitlines()
    succeeded = next(line.split()[1] for line in metrics if line.startswith("tgi_request_success "))
    assert float(succeeded) > 50


def test_the_description_names_every_route_and_body(served: httpx.Client):
    described = served.get("/openapi.json").json()
    assert set(described["paths"]) == {
        "/",
        "/generate",
        "/generate_stream",
        "/tokenize",
        "/chat_tokenize",
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/models",
        "/v1/models/{model}",
        "/ping",
        "/invocations",
        "/health",
        "/info",
        "/metrics",
    }
    for path, methods in described["paths"].items():
        if "post" in methods:
            body = methods["post"]["requestBody"]["content"]["application/json"]["schema"]
            for reference in body.get("anyOf", [body]):
                assert reference["$ref"].rsplit("/", 1)[1] in described["components"]["schemas"], path
    assert served.get("/api-doc/openapi.json").json() == described
    assert served.get("/docs").status_code == 200
