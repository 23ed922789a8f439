"""A table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

LEFT = ":---"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], others: str = "---:") -> str:
    """A pipe table; the first column is aligned left, the others right, or as `others` says. Entries are taken as they
    are."""
    lines = [head, [":---"] + [others] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
