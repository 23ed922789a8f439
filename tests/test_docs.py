"""The docs say what the code does: generated parts are up to date, every path, link and test they name exists.

`make docs` (python -m tests.test_docs --write) rewrites the generated parts; the tests compare.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
CLI = ROOT / "docs" / "cli.md"
METRICS = ROOT / "docs" / "metrics.md"
COMMANDS = (
    ("tokenclock run", ["loadtest", "run"]),
    ("tokenclock probe", ["loadtest", "probe"]),
    ("tokenclock calibrate", ["loadtest", "calibrate"]),
    ("tokenclock report", ["loadtest", "report"]),
    ("tokenclock compare", ["loadtest", "compare"]),
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


def metrics_page() -> str:
    """docs/metrics.md, from the series that the server declares."""
    from server.metrics import ABSENT, NOTES, Metrics
    from server.series import Histogram, Series

    def row(series: Series) -> str:
        note = f"; {NOTES[series.name]}" if series.name in NOTES else ""
        return metrics_row(series.name, series.kind, series.labels, f"{series.meaning}{note}")

    declared = Metrics().series
    parts = [METRICS_HEAD]
    for title, prefix, words in METRICS_PARTS:
        rows = [row(series) for series in declared if series.name.startswith(prefix)]
        parts.append(
            f"## {title}\n\n{words}\n\n| name | type {{labels}} | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"
        )
    absent = [f"| `{name}` | {reason} |" for name, reason in ABSENT.items()]
    parts.append("## TGI's that are not here\n\n| name | why |\n|---|---|\n" + "\n".join(absent) + "\n")
    of_bounds: dict[tuple[float, ...], list[str]] = {}
    for series in declared:
        if isinstance(series, Histogram):
            of_bounds.setdefault(series.bounds, []).append(f"`{series.name}`")
    parts.append(f"## Buckets\n\n{BUCKETS}\n")
    for bounds, names in of_bounds.items():
        told = f"{len(bounds)}: {', '.join(f'{bound:.6g}' for bound in bounds)}" if bounds else MODELS_BOUNDS
        parts.append(textwrap.fill(f"{', '.join(names)} — {told}.", 120, break_long_words=False) + "\n")
    return "\n".join(parts + load_generators_metrics())


def metrics_row(name: str, kind: str, labels: Sequence[str], meaning: str) -> str:
    labelled = f" {{{', '.join(labels)}}}" if labels else ""
    return f"| `{name}` | {kind}{labelled} | {meaning} |"


def load_generators_metrics() -> list[str]:
    from loadtest.live.histogram import BOUNDS_S
    from loadtest.live.series import SERIES

    rows = [metrics_row(series.name, series.kind, series.labels, series.meaning) for series in SERIES]
    bounds = textwrap.fill(f"{len(BOUNDS_S)}: {', '.join(f'{bound:g}' for bound in BOUNDS_S)}.", 120)
    head = "| name | type {labels} | meaning |\n|---|---|---|\n"
    return [f"{LOAD_GENERATOR}\n{head}" + "\n".join(rows) + f"\n\n{LOAD_GENERATORS_BUCKETS}\n\n{bounds}\n", BOTH]


METRICS_HEAD = """# Metrics

Written by `make docs` from `server/metrics.py` and `loadtest/live/series.py`: first the server's, then
[the load generator's](#the-load-generators). `GET /metrics` is Prometheus' text format 0.0.4, of one server process.

A *text* is what TGI calls a request: OpenAI's `n`, several prompts and TGI's `best_of` are several texts. Every text is
counted in `tgi_request_count` when it comes, and once in `tgi_request_success` or `tgi_request_failure` when it ends.
Durations are seconds between the instants that `x-tokenclock-timing` tells of; the arrival is before the body is read.
`process_*` are prometheus_client's: memory, CPU time and descriptors of the process.

What a token costs the engine's thread, and a scrape the event loop (2 to 4 ms), `benchmarks/metrics.py` measures.
"""
METRICS_PARTS = (
    (
        "TGI's",
        "tgi_",
        """Names, labels and buckets are those of text-generation-inference 3.3, so its Grafana dashboard works. Its
counters have no `_total`: that, and two names that end in `_count`, is all that `promtool check metrics` names.""",
    ),
    (
        "OpenTelemetry's",
        "gen_ai_",
        """The model server's metrics of the semantic conventions for generative AI, names and attributes as Prometheus
has them. `gen_ai_operation_name` is `chat` or `text_completion`, `gen_ai_provider_name` is `tokenclock`,
`gen_ai_request_model` is the served name.""",
    ),
    ("Our own", "tokenclock_", "What neither has. Slot occupancy is `tokenclock_slots_in_use / tokenclock_slots`."),
)
BUCKETS = """TGI's durations are 0.0001 · 1.5^k, k from 1 to 35. Where OpenTelemetry only recommends bounds, ours are
those and ten a decade: neighbours are at most 28 % apart, so a quantile between the first and the last, read from the
buckets, is within 28 % of the true one. The recommended bounds alone are up to 400 % apart: median first tokens of
1.1 ms and of 4.9 ms would look the same."""
MODELS_BOUNDS = (
    "100 equal steps, as TGI's: prompt tokens to the model's max_input_tokens, the others to its max_total_tokens"
)


LOAD_GENERATOR = """## The load generator's

Plain `locust`, a locust master and `tokenclock run` serve them on http://127.0.0.1:9646/metrics while they run. At
the end they wait for Prometheus to scrape once more, at most 15 s after its last scrape: what it holds then is the
whole test, where it scrapes at least every 15 s and the run wasn't cut short. Where the time runs out without a
scrape, a sentence says how many requests it has heard of. Ctrl-C or SIGTERM ends this wait of `tokenclock run`, and
nothing else.
`TOKENCLOCK_METRICS_PORT` is another port, or `off`; `TOKENCLOCK_METRICS_HOST=0.0.0.0` lets other machines, and
containers, ask. A port in use is a sentence in the log and ends no test. A master's are the sums over its workers,
those that died included; each sends all that it has seen with locust's report every 3 seconds, so that a report that is
lost or comes twice changes nothing. All begin at 0 again with a test.

Warm-up and ramp are in them, and the durations are those of [what is measured](../README.md#what-is-measured). Tokens
are counted when their request ends. The verdict on a client process is the report's, as far as the test has come.
`tokenclock_calibrated_error_seconds` is there where the results folder held a calibrated run of this machine when the
process began: `metric` is ttft, itl or e2e, the quantile 1 is the largest, `concurrency` that of the load.
"""
BOTH = """## Both, in Prometheus and Grafana

`docker/prometheus/` has a configuration for both halves, recording rules (quantiles of TTFT and ITL, tokens a second,
queue, slots) and alerts: TTFT over its objective, refusals for overload, a server that is down or whose backend is
unhealthy, a saturated client. `promtool test rules rules.test.yml` tests them. The client's TTFT over the server's, by
quantile, is `tokenclock:client_ttft_seconds:quantile / tokenclock:server_ttft_seconds:quantile`.

`docker/grafana/` has two dashboards and what Grafana needs to find them: the server, and a load test beside it (TTFT of
both and what it consists of, throughput, verdicts, how late the client is).
"""
LOAD_GENERATORS_BUCKETS = """All its histograms have the same buckets, ten a decade. Locust's tab "LLM" is read from
256 steps within each of them, so its quantiles are within 0.06 % of those of all durations."""


def test_the_page_on_metrics_says_what_both_halves_declare():
    assert METRICS.read_text(encoding="utf-8") == metrics_page(), "run `make docs`"


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


def test_the_page_on_the_split_names_every_histogram_and_limit():
    from loadtest.split.averages import ALL, STARTED
    from loadtest.split.scrape import LONGEST_S

    page = (ROOT / "docs" / "split.md").read_text(encoding="utf-8")
    labels = [(each.name, ",".join(f'{name}="{value}"' for name, value in each.labels.items())) for each in ALL]
    names = [f"`{name}{{{of}}}`" if of else f"`{name}`" for name, of in labels]
    assert len(names) > 8
    assert [name for name in (*names, f"`{STARTED}`", f"{LONGEST_S:g} s") if name not in page] == []


def test_make_help_names_every_target():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split())  # type: ignore[index]
    explained = set(re.findall(r"^([a-z]+):.* ## ", makefile, re.M))
    assert targets == explained


if __name__ == "__main__" and "--write" in sys.argv:
    CLI.write_text(cli_page(), encoding="utf-8")
    METRICS.write_text(metrics_page(), encoding="utf-8")
