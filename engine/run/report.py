"""`<output>/report.html`: how a run went, in one page. Also `python -m engine.run.report OUTPUT`.

Everything is read from the output: status, quarantines, manifest, events. Contact sheets are JPEG files under
`_report/` beside the page; one that exists is kept.
"""

import io
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.ingest.reasons import Reason
from engine.run.progress import read_events
from shards import index
from shards.contact_sheet import contact_sheet
from shards.dataset import open_dataset
from shards.run import failures, status
from shards.schema import QUALITY
from shards.store import StorageError, Store, open_store

TEMPLATE = Path(__file__).with_name("report.html.jinja")
SHEETS = 48  # contact sheets in the page; `python -m shards contact-sheet` draws the others
BINS = 24


@dataclass(frozen=True)
class Histogram:
    """One quality column: bars as (x, y, width, height) in a 240 x 64 drawing, ends and median in numbers."""

    name: str
    doc: str
    bars: list[tuple[float, float, float, float]]
    low: float
    median: float
    high: float
    missing: int


def write_report(store: Store) -> None:
    """Draw missing contact sheets and write the page."""
    from jinja2 import Environment

    table, _ = index.load(store)
    rows = table.drop_columns(["members"]).to_pylist()
    sheets = _draw_sheets(store, [row["key"] for row in rows[:SHEETS]])
    events = read_events(store)
    given_up = _given_up(store, {row["unit"] for row in rows})
    page = (
        Environment(autoescape=True)
        .from_string(TEMPLATE.read_text(encoding="utf-8"))
        .render(
            run=json.loads(store.read("_run.json")),
            status=status(store),
            frames=sum(row["frames"] for row in rows),
            seconds=sum(row["frames"] / row["fps"] for row in rows),
            rows=rows,
            sheets=sheets,
            reasons=_reasons(given_up),
            failures=given_up[:200],
            stages=stage_table(events),
            peak_mb=max((e["peak_mb"] for e in events if e["stage"] == "unit"), default=0.0),
            histograms=[
                histogram(name, found)
                for name in QUALITY
                if (found := [row[name] for row in rows if row.get(name) is not None])  # older runs lack newer columns
            ],
            kinds=Counter(row["camera_kind"] for row in rows).most_common(),
            verdicts=Counter(row["verdict"] for row in rows).most_common(),
        )
    )
    store.put("report.html", page.encode())


def stage_table(events: list[dict]) -> list[dict]:
    """Per stage, in order of first appearance: clips, total, mean, median and worst seconds, share of all time, mean
    seconds in the queue and megabytes made, highest peak memory in MiB."""
    found: dict[str, list[dict]] = defaultdict(list)
    for event in events:
        if event["stage"] != "unit":
            found[event["stage"]].append(event)
    seconds = {name: [event["seconds"] for event in group] for name, group in found.items()}
    total = sum(map(sum, seconds.values())) or 1.0
    return [
        {
            "stage": name,
            "clips": len(values),
            "total": sum(values),
            "mean": float(np.mean(values)),
            "median": float(np.median(values)),
            "worst": max(values),
            "share": sum(values) / total,
            "queue": float(np.mean([event.get("queue", 0.0) for event in found[name]])),
            "mb": float(np.mean([event.get("bytes", 0) for event in found[name]])) / 1e6,
            "peak_mb": max(event.get("peak_mb", 0.0) for event in found[name]),
        }
        for name, values in seconds.items()
    ]


def histogram(name: str, values: list[float | None]) -> Histogram:
    """Counts of the finite values in equal bins between their ends."""
    present = np.array([v for v in values if v is not None and np.isfinite(v)], float)
    missing = len(values) - len(present)
    if not len(present):
        return Histogram(name, QUALITY[name], [], 0.0, 0.0, 0.0, missing)
    low, high = float(present.min()), float(present.max())
    counts, _ = np.histogram(present, BINS, (low, high if high > low else low + 1))
    step, top = 240 / BINS, 60 / counts.max()
    bars = [(i * step, 64 - top * c, step - 1, top * c) for i, c in enumerate(counts.tolist()) if c]
    return Histogram(name, QUALITY[name], bars, low, float(np.median(present)), high, missing)


def _draw_sheets(store: Store, keys: list[str]) -> list[tuple[str, str]]:
    """(key, path of its picture relative to the page)."""
    there = {entry.path for entry in store.list("_report")}
    dataset, sheets = open_dataset(store.url), []
    for key in keys:
        path = f"_report/{key}.jpg"
        if path not in there:
            sink = io.BytesIO()
            contact_sheet(dataset[key]).save(sink, "JPEG", quality=88)
            store.put(path, sink.getvalue())
        sheets.append((key, path))
    return sheets


def _reasons(given_up: list[dict]) -> list[tuple[str, int, str]]:
    """(reason, clips, what it means), most frequent first."""
    docs = {reason.code: reason.doc for reason in Reason}
    counts = Counter(failure["reason"] for failure in given_up)
    return [(reason, count, docs.get(reason, "")) for reason, count in counts.most_common()]


def _given_up(store: Store, committed: set[str]) -> list[dict]:
    """The failures that stand: of every unit the last one, unless a later attempt made it into the shards."""
    done = {ident.partition("-r")[0] for ident in committed}
    last = {failure["unit"]: failure for failure in sorted(failures(store), key=lambda f: f["attempt"])}
    standing = (failure for unit, failure in last.items() if unit not in done)
    return sorted(standing, key=lambda f: (f["reason"], f["uri"], f["start_s"]))


def main(arguments: list[str]) -> int:
    output = arguments[0] if arguments else "out/"
    try:
        write_report(open_store(output))
    except (StorageError, FileNotFoundError) as error:
        print(f"report: {output}: {error}", file=sys.stderr)
        return 1
    print(f"{output.rstrip('/')}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
