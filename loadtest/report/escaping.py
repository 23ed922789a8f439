"""Text that came from a server, a command line or an error, as plain text of a Markdown file."""

from __future__ import annotations


def escape(text: object) -> str:
    """One line of plain text: no pipe, tag, link or emphasis of it is markup."""
    line = " ".join(str(text).split())
    for character in "\\`*_[]<>|":
        line = line.replace(character, "\\" + character)
    return line.replace("&", "&amp;")
