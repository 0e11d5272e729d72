"""Events reach the store while a run is under way, so that a driver that is killed takes little with it."""

import time
from types import SimpleNamespace

import pytest

from engine.run import progress
from engine.run.progress import Events, read_events
from engine.run.work import Outcome, Use
from shards.store import open_store


@pytest.fixture
def events(tmp_path) -> Events:
    return Events(open_store(str(tmp_path)), epoch=3)


def decide(events: Events, count: int) -> None:
    for i in range(count):
        unit = SimpleNamespace(ident=f"u{i}", key=f"k{i}")
        events.add(Outcome(unit, 10, None, 1, {"decode": Use(1.0, 0.5, 7, 2.0), "camera": Use(2.0)}))


def units(events: Events) -> list[str]:
    return [e["unit"] for e in read_events(events.store) if e["stage"] == "unit"]


def test_many_clips_make_a_file(events, monkeypatch):
    monkeypatch.setattr(progress, "PART", 3)
    decide(events, 7)
    assert units(events) == [f"u{i}" for i in range(6)]
    events.flush()
    events.flush()  # nothing new, no file
    assert units(events) == [f"u{i}" for i in range(7)]
    assert sorted(e.path for e in events.store.list("_events")) == [f"_events/000003-{i:04d}.jsonl" for i in range(3)]


def test_slow_clips_make_a_file_after_a_while(events, monkeypatch):
    decide(events, 1)
    assert units(events) == []
    now = time.monotonic()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now + progress.PART_S + 1)
    decide(events, 1)
    assert units(events) == ["u0", "u0"]
    decide(events, 1)
    assert len(units(events)) == 2


def test_the_line_of_the_whole_clip_sums_its_stages(events):
    decide(events, 1)
    events.flush()
    decode, camera, whole = read_events(events.store)
    assert decode == {"unit": "u0", "key": "k0", "stage": "decode", "seconds": 1.0, "queue": 0.5, "bytes": 7} | {
        "peak_mb": 2.0
    }
    assert camera["seconds"] == 2.0
    assert (whole["seconds"], whole["queue"], whole["bytes"], whole["peak_mb"], whole["status"]) == (
        3.0,
        0.5,
        10,
        2.0,
        "done",
    )
