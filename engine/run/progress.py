"""Progress on a terminal (a bar) or in a log (plain lines), and the events of a run."""

import json
import sys
import time
from dataclasses import dataclass, field

from tqdm import tqdm

from engine.run.work import Outcome, Use
from shards.store import Store

LINE_S = 10.0  # seconds between plain lines
# An object store cannot append: an event file has at most so many clips and seconds, which a driver's death may cost
PART, PART_S = 200, 300.0


class Progress:
    """Counts, rate and time left of `total` clips."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.failed = total, 0, 0
        self._start = self._said = time.monotonic()
        self.seconds: dict[str, float] = {}
        bar = sys.stderr.isatty()
        self._bar = tqdm(total=total, unit="clip", dynamic_ncols=True, smoothing=0.1) if bar else None

    def grow(self, count: int) -> None:
        """More clips turned up."""
        self.total += count
        if self._bar is not None:
            self._bar.total = self.total

    def update(self, outcome: Outcome) -> None:
        self.done += 1
        self.failed += outcome.failure is not None
        for stage, use in outcome.stages.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + use.seconds
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self.failed} quarantined" if self.failed else "")
            self._bar.update()
        elif time.monotonic() - self._said > LINE_S or self.done == self.total:
            self._said = time.monotonic()
            self.say(self.line())

    def line(self) -> str:
        """`12/40 clips, 1 quarantined, 0.031 clips/s, 15 min left`."""
        rate = self.done / max(time.monotonic() - self._start, 1e-9)
        left = (self.total - self.done) / rate if rate else 0
        bad = f", {self.failed} quarantined" if self.failed else ""
        return f"{self.done}/{self.total} clips{bad}, {rate:.3g} clips/s, {_span(left)} left"

    def utilisation(self) -> str:
        """`busy workers on average over 84 s: decode 0.12, track 0.40, ...; 1.52 in all`."""
        wall = max(time.monotonic() - self._start, 1e-9)
        stages = ", ".join(f"{stage} {seconds / wall:.2f}" for stage, seconds in self.seconds.items())
        return f"busy workers on average over {wall:.0f} s: {stages}; {sum(self.seconds.values()) / wall:.2f} in all"

    def say(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr) if self._bar is not None else print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


@dataclass
class Events:
    """`_events/<epoch>-<part>.jsonl`: one line per unit and stage, written by the driver."""

    store: Store
    epoch: int
    part: int = 0
    lines: list[str] = field(default_factory=list)
    flushed: float = field(default_factory=time.monotonic)

    def add(self, outcome: Outcome) -> None:
        """Lines of a decided unit: its stages, then the whole."""
        unit, failure = outcome.unit, outcome.failure
        base = {"unit": unit.ident, "key": unit.key}
        uses = outcome.stages.values()
        whole_use = Use(
            sum(u.seconds for u in uses),
            sum(u.queue for u in uses),
            outcome.bytes,
            max((u.peak_mb for u in uses), default=0.0),
        )
        rows = [{"stage": name, **_fields(use)} for name, use in outcome.stages.items()]
        whole = {"stage": "unit", **_fields(whole_use), "attempts": outcome.attempts, "time": round(time.time(), 3)}
        whole |= {"status": failure.reason if failure else "done"}
        self.lines += [json.dumps(base | row) for row in [*rows, whole]]
        many = sum('"stage": "unit"' in line for line in self.lines) >= PART
        if many or time.monotonic() - self.flushed > PART_S:
            self.flush()

    def flush(self) -> None:
        """Write what has gathered."""
        if self.lines:
            text = "\n".join(self.lines) + "\n"
            self.store.put(f"_events/{self.epoch:06d}-{self.part:04d}.jsonl", text.encode())
            self.part, self.lines = self.part + 1, []
        self.flushed = time.monotonic()


def _fields(use: Use) -> dict:
    """`seconds` of work, `queue` seconds of waiting for a worker, `bytes` made, `peak_mb` of the process."""
    return {
        "seconds": round(use.seconds, 4),
        "queue": round(use.queue, 4),
        "bytes": use.bytes,
        "peak_mb": round(use.peak_mb, 1),
    }


def read_events(store: Store) -> list[dict]:
    """Every event of every driver of an output, oldest driver first."""
    paths = sorted(entry.path for entry in store.list("_events") if entry.path.endswith(".jsonl"))
    return [json.loads(line) for path in paths for line in store.read(path).decode().splitlines()]


def _span(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
