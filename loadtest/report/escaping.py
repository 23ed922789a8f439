"""Text that came from a server, a command line or an error, as plain text of a Markdown file, or a word in a chart."""

from __future__ import annotations


def escape(text: object) -> str:
    """One line of plain text: no pipe, tag, link or emphasis of it is markup."""
    line = " ".join(str(text).split())
    for character in "\\`*_[]<>|":
        line = line.replace(character, "\\" + character)
    return line.replace("&", "&amp;")


def short(label: str, most: int = 48) -> str:
    """A label with room in a chart: of a longer one begin and end, and no letter that can't be printed."""
    line = "".join(letter if letter.isprintable() else " " for letter in label)
    return line if len(line) <= most else f"{line[: most // 2]}…{line[-most // 2 + 1 :]}"
