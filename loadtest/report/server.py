"""What the server tells of its own times, as sections of report.md: by request, or its averages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loadtest.report import split
from loadtest.report.escaping import escape
from loadtest.report.numbers import ABSENT, quantity
from loadtest.report.table import table


def sections(cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Markdown, without what nobody told."""
    yield from _split(cells)
    yield from _told(cells)
    yield from _averages(cells)


def _split(cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not (of := split.split_cells(cells)):
        return
    head, rows = split.rows(of)
    title = f"What the {split.whole(of)} consists of"
    said = (
        "Means, because the means of parts add up to the mean of the whole; medians don't. Each request is split by "
        "itself: network + client is what it took less what the server told, so HTTP and both event loops are in it, "
        "and the queue where the server doesn't tell that."
    )
    doubts = "".join(f"\n- **More than the whole**: {escape(each)}." for each in split.negative(of))
    picture = f"![{title}]({split.NAME}.png)"
    told = table(head, [[escape(entry), *others] for entry, *others in rows])
    yield "\n\n".join([f"## {title}", picture, told, said, *([doubts.strip()] if doubts else [])])


def _told(cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    told = [entry for entry in cells if entry["server"]]
    parts = [name for name in split.PARTS if any(entry["server"].get(name) is not None for entry in told)]
    rows = []
    for entry in told:
        steps = ", ".join(f"{size}: {n}" for size, n in entry["server"]["steps_by_batch_size"].items())
        times = (quantity(entry["server"][name], "s", 3) for name in parts)
        rows.append([escape(entry["label"]), str(entry["server"]["n"]), *times, steps or ABSENT])
    if rows:
        head = ["cell", "requests", *(split.PARTS[name][0] for name in parts), "steps by batch size"]
        yield (
            "## The server's own times\n\nMedians over requests. A step counts once for every request that it "
            "served.\n\n" + table(head, rows)
        )


def _averages(cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Of cells whose server didn't tell by request."""
    cells = [entry for entry in cells if entry["averages"] and not entry["split"]]
    rows, said = [], []
    for entry in cells:
        label, found = escape(entry["label"]), entry["averages"]
        of = found["of"]
        if found["reason"]:
            said.append(f"- {label}: no averages: {escape(found['reason'])}.")
            continue
        said += [f"- {label}: {escape(doubt)}." for doubt in found["doubts"]]
        times = [
            quantity(of[name]["mean_s"], "s", 3) if name in of else ABSENT
            for name in ("ttft_s", "queue_s", "prefill_s")
        ]
        counted = ABSENT if found["counted"] is None else str(found["counted"])
        ours = [quantity(found["client_ttft_s"], "s", 3), times[0], quantity(found["rest_s"], "s", 3)]
        rows.append([label, f"{found['complete']} of {found['sent']}", counted, *ours, *times[1:]])
    if not rows and not said:
        return
    blocks = ["## The server's averages"]
    if rows:
        head = ["cell", "ours, complete", "server's", "TTFT here", "TTFT there", "network + client", "queue", "prefill"]
        urls = ", ".join(dict.fromkeys(escape(entry["averages"]["url"]) for entry in cells))
        blocks += [
            f"This server doesn't tell its times of each request. {urls} was read before and after each cell: these "
            "are averages (Δsum / Δcount of its histograms) of **all requests that the server saw meanwhile, others' "
            "included**, and they are joined to none of ours. TTFT here is the mean of ours; "
            "network + client is its difference, where both are of the same requests.",
            table(head, rows),
            "Histograms: " + "; ".join(dict.fromkeys(_series(cells))) + ".",
        ]
    yield "\n\n".join([*blocks, *(["\n".join(said)] if said else [])])


def _series(cells: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    steps = ", counted by step of the device: several prompts may share one, a long prompt takes several"
    for entry in cells:
        for name, of in entry["averages"]["of"].items():
            title = split.WHOLE.get(name) or split.PARTS[name][0]
            yield f"{title} `{of['series']}`{steps if of['counts'] == 'step' else ''}"
