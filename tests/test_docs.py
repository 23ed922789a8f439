"""The docs say what the code does: generated parts are up to date, every path, link and test they name exists.

`make docs` (python -m tests.test_docs --write) rewrites the generated parts; the tests compare.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
CLI = ROOT / "docs" / "cli.md"
COMMANDS = (
    ("tokenclock run", ["loadtest", "run"]),
    ("tokenclock probe", ["loadtest", "probe"]),
    ("tokenclock report", ["loadtest", "report"]),
    ("tokenclock-server serve", ["server", "serve"]),
    ("tokenclock-server export", ["server", "export"]),
    ("tokenclock-server check", ["server", "check"]),
)


def cli_page() -> str:
    """docs/cli.md, from the commands' own --help."""
    parts = ["# Command lines\n\nWritten by `make docs` from the commands themselves.\n"]
    for title, (module, *verb) in COMMANDS:
        shown = subprocess.run(
            [sys.executable, "-m", module, *verb, "--help"],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"},
        )
        parts.append(f"## {title}\n\n```\n{shown.stdout.strip()}\n```\n")
    parts.append(
        "Every option of `tokenclock-server serve` can be set in the environment: `--max-total-tokens 1024` is\n"
        "`TOKENCLOCK_MAX_TOTAL_TOKENS=1024`. The command line wins.\n"
    )
    return "\n".join(parts)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="argparse lays its help out differently from Python 3.13 on")
def test_the_command_lines_are_as_the_commands_print_them():
    assert CLI.read_text(encoding="utf-8") == cli_page(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_picture_leads_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_named_exists(page: Path):
    named = re.findall(r"`((?:server|loadtest|tests|docs)/[\w/.]*)", page.read_text(encoding="utf-8"))
    assert all((ROOT / name).exists() for name in named), [name for name in named if not (ROOT / name).exists()]


def test_every_promise_names_a_test_that_exists():
    promises = re.findall(r"`(tests/[\w/.]+)::(\w+)`", (ROOT / "docs" / "behaviour.md").read_text(encoding="utf-8"))
    assert len(promises) >= 15
    for file, name in promises:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file} has no {name}"


#: The promises of a server under load; a test's name begins as its promise does.
PROMISES = (
    "A full queue answers 429 at once, with the limit in the message; nothing waits unbounded.",
    "A client that goes away frees its slot within one decode step, in every protocol, streaming or not.",
    "A reader that stops reading never slows another stream; past a bound it is dropped and counted.",
    "SIGTERM: new requests get 503, running ones finish within the grace time, then exit 0.",
    "`/health` is 503 while loading, draining, or after a backend that cannot go on, with the reason.",
    "A backend exception fails the requests it touched (error event, or 424), frees the slots, and the engine goes on.",
    "With an API key set, every generating route needs it; compared in constant time; never logged.",
    "Bodies over the limit and bad input get 4xx and cost no slot.",
    "Prompts and outputs are not logged by default; logs are structured and carry the request id.",
    "A request's times add up: queue + prefill + decode = what it took, within a millisecond.",
)


@pytest.mark.parametrize("number", range(1, len(PROMISES) + 1))
def test_each_promise_under_load_has_a_test_of_its_name(number: int):
    page = (ROOT / "docs" / "behaviour.md").read_text(encoding="utf-8")
    promise = PROMISES[number - 1]
    if number == 3 and not (ROOT / "tests" / "server" / "test_token_path.py").exists():
        pytest.skip("what holds it comes with the token path")
    found = re.search(rf"^{number}\. {re.escape(promise)}\n +`(tests/[\w/.]+)::(\w+)`$", page, re.M)
    assert found is not None, promise
    words = re.findall(r"[a-z0-9]+", re.split("[,;]", promise)[0].lower().replace("'", ""))
    assert found[2].startswith("_".join(["test", *words]))
    assert f"def {found[2]}(" in (ROOT / found[1]).read_text(encoding="utf-8")


def test_the_wire_page_names_every_route_and_parameter():
    from server.api.openai.schemas import ChatRequest, CompletionRequest
    from server.api.tgi.schemas import Parameters
    from server.app import create_app
    from server.settings import Settings

    page = (ROOT / "docs" / "wire.md").read_text(encoding="utf-8")
    names = [name for model in (Parameters, ChatRequest, CompletionRequest) for name in model.model_fields]
    assert len(names) > 60
    tgi, openai = (page.split(f"\n## {name}\n")[1].split("\n## ")[0] for name in ("TGI", "OpenAI"))
    sections = [(Parameters, tgi), (ChatRequest, openai), (CompletionRequest, openai)]
    missing = {name for model, section in sections for name in model.model_fields if f"`{name}`" not in section}
    assert missing == {"prompt", "messages"}, "these two are in the table of routes"
    routes = create_app(Settings()).openapi()["paths"]
    assert [route for route in routes if f"{route}`" not in page] == []


def test_the_readme_names_the_two_commands_and_every_verdict():
    from loadtest.verdict import Verdict

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.index("make bench") < readme.index("make test") < readme.index("## ")
    assert [verdict for verdict in Verdict if f"`{verdict}`" not in readme] == []


def test_the_probe_page_names_every_finding_and_field():
    from loadtest.probe import facts
    from loadtest.probe.findings import DOUBTS
    from loadtest.verdict import Verdict

    page = (ROOT / "docs" / "probe.md").read_text(encoding="utf-8")
    codes = {*DOUBTS.keys() - {"failed"}, *Verdict} - {Verdict.COMPLETE}
    assert [code for code in sorted(codes) if f"`{code}`" not in page] == []
    fields = re.search(r"\n\n( {4}schema .*?)\n\n", facts.__doc__ or "", re.S)
    assert fields is not None
    assert textwrap.dedent(fields[1]) in page


def test_make_help_names_every_target():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split())  # type: ignore[index]
    explained = set(re.findall(r"^([a-z]+):.* ## ", makefile, re.M))
    assert targets == explained


if __name__ == "__main__" and "--write" in sys.argv:
    CLI.write_text(cli_page(), encoding="utf-8")
