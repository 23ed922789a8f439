"""The words of `tokenclock run` about the server's own metrics."""

from __future__ import annotations

import argparse
from typing import Any

from loadtest.arguments import Usage
from loadtest.endpoints.base import EndpointError, parse_url
from loadtest.sagemaker.runtime import SCHEME
from loadtest.split.scrape import Page


def add_metrics(group: Any) -> None:
    group.add_argument(
        "--metrics-url",
        metavar="URL",
        help="the server's Prometheus page, read before and after each cell (default: the endpoint's /metrics, if any)",
    )
    group.add_argument("--no-server-metrics", action="store_true", help="don't read it")


def page(asked: argparse.Namespace) -> Page | None:
    """Raises: Usage."""
    if asked.no_server_metrics and asked.metrics_url is not None:
        raise Usage("--metrics-url and --no-server-metrics contradict each other: leave one of them out")
    if asked.metrics_url is not None:
        try:
            parse_url(asked.metrics_url)
        except EndpointError as error:
            raise Usage(f"--metrics-url: {error}") from error
        return Page(asked.metrics_url)
    behind_aws = (asked.url or "").startswith(SCHEME)  # which has no such route
    return None if asked.no_server_metrics or behind_aws else Page()
