"""The two published grids, cell by cell, as the page and its script have them; they share one cell and never mix."""

from __future__ import annotations

import pytest

from loadtest.plan import CONFIGS, PLANS, PlanError, named


def grid(name: str) -> list[tuple[int, int]]:
    return [(cell.input_tokens, cell.new_tokens) for cell in PLANS[name].cells(CONFIGS["T"], 4)]


def test_the_published_grid_is_the_charts():
    assert grid("published") == [(256, 1), (512, 1), (768, 1), (256, 256), (256, 512), (256, 768)]


def test_the_other_grid_ends_at_1024_tokens():
    assert grid("to-1024") == [(256, 1), (512, 1), (768, 1), (256, 768), (512, 512), (768, 256)]
    assert {sum(cell) for cell in grid("to-1024")[3:]} == {1024}


def test_both_need_1024_tokens():
    assert [named(name).max_total_tokens for name in PLANS] == [1024, 1024]


def test_configurations_are_the_pages():
    assert [(c.name, c.slots, c.concurrency) for c in CONFIGS.values()] == [("L", 1, 1), ("T", 4, 4)]


def test_an_unknown_plan_names_those_that_exist():
    with pytest.raises(PlanError, match="there is no plan 'nightly': choose published or to-1024"):
        named("nightly")
