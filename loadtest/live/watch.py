"""Where a locust process tells what it sees: a worker its master; any other on /metrics, and on locust's page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from loadtest.live.exporter import exported
from loadtest.live.page import add_tab
from loadtest.live.processes import Alone, Processes, Workers


def report(environment: Any, alone: Alone) -> None:
    """environment: a locust.env.Environment of a worker, whose state goes with each of its reports."""

    def add(data: dict[str, Any], **_: object) -> None:
        alone.report(data)

    environment.events.report_to_master.add_listener(add)


def gather(environment: Any) -> Workers:
    """environment: of a master."""
    workers = Workers(lambda: environment.runner.user_count)

    def heard(client_id: str, data: Mapping[str, Any]) -> None:
        workers.heard(client_id, data)

    environment.events.worker_report.add_listener(heard)
    return workers


def show(environment: Any, processes: Processes, say: Callable[[str], object]) -> None:
    """Serve metrics until locust quits, and put the tab into its page where there is one."""
    shown = ExitStack()
    shown.enter_context(exported(processes, Path(environment.parsed_options.results_dir), say))
    environment.events.quitting.add_listener(lambda **_: shown.close())
    if environment.web_ui is not None:
        add_tab(environment.web_ui, processes, environment.parsed_options.web_base_path or "")
