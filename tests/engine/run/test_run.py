"""Runs in this process: nothing is done twice, one bad video stops nothing, and the exit code says how it went."""

import json
import os
import shutil
import signal

import pytest
from unroll_inputs import HEIGHT, WIDTH, WORDS, shards_of, write_input

from engine.config import load
from engine.perception import Models, registry
from engine.run.drive import drive
from engine.run.progress import read_events
from shards.run import failures, status
from shards.store import open_store
from shards.verify import verify


def run(source, output, *words) -> int:
    return drive(load([f"input={source}", f"output={output}", *WORDS, *words]))


def reasons(output) -> list[str]:
    return sorted(f["reason"] for f in failures(str(output)))


class Spoiled:
    """Real precomputed perception that first calls `spoil(clip)`."""

    def __init__(self, inner, spoil):
        self.inner, self.spoil = inner, spoil

    def track(self, clip):
        self.spoil(clip)
        return self.inner.track(clip)


@pytest.fixture
def spoil(monkeypatch):
    """Give perception a function that sees every clip before the models do."""
    build = registry.BUNDLES["precomputed"]

    def install(action):
        def spoiled(options, wanted):
            models = build(options, wanted)
            return Models(Spoiled(models.tracker, action), models.geometry, models.depth)

        monkeypatch.setitem(registry.BUNDLES, "precomputed", spoiled)

    return install


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_input(tmp_path_factory.mktemp("videos"), 3)


def test_videos_become_verified_shards_and_the_second_run_does_no_work(source, tmp_path, spoil, capsys):
    out = tmp_path / "out"
    assert run(source, out, "report=true") == 0
    assert not verify(open_store(str(out))).problems
    now = status(str(out))
    assert (now.planned, now.committed, now.quarantined, now.todo) == (3, 3, 0, 0)
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")} | shards_of(out)
    page = (out / "report.html").read_text()
    assert page.count("<figure>") == 3
    assert "selfcheck_psnr_db" in page
    assert len(list((out / "_report").glob("*.jpg"))) == 3

    spoil(lambda clip: pytest.fail("a committed clip was looked at again"))
    capsys.readouterr()
    assert run(source, out) == 0
    assert "nothing new" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.tar")} | shards_of(out) == before


def test_equal_inputs_give_equal_bytes(source, tmp_path):
    assert run(source, tmp_path / "a") == run(source, tmp_path / "b") == 0
    assert shards_of(tmp_path / "a") == shards_of(tmp_path / "b")


def test_the_sample_says_where_it_came_from(source, tmp_path):
    from shards.dataset import open_dataset

    run(source, tmp_path / "out", "limit=1", "clip.fov_deg=63.8")
    dataset = open_dataset(tmp_path / "out")
    (key,) = dataset
    meta = dataset[key]["meta.json"]
    assert meta["source"]["uri"] == str(source / "v000.mp4")
    assert meta["source"]["frames"] == list(range(9))
    assert (meta["height"], meta["width"], meta["fps"]) == (HEIGHT, WIDTH, 16)
    assert meta["camera_kind"] == "static"
    assert len(meta["subjects"]) == 1
    assert len(meta["config"]) == 16


def test_bad_videos_are_quarantined_with_reasons_and_the_rest_goes_on(source, tmp_path):
    mixed = tmp_path / "in"
    shutil.copytree(source, mixed)
    (mixed / "a_text.mp4").write_text("no video")
    (mixed / "zz.mp4").write_bytes((source / "v000.mp4").read_bytes()[:900])
    shutil.rmtree(mixed / "v001")  # no depth and no masks: perception fails
    out = tmp_path / "out"
    assert run(mixed, out) == 2
    assert status(str(out)).committed == 2
    assert reasons(out) == ["not_a_video", "not_a_video", "perception_failed"]
    failed = next(f for f in failures(str(out)) if f["reason"] == "perception_failed")
    assert failed["attempts"] == 2
    assert failed["stage"] == "track"
    assert "Traceback" in failed["traceback"]
    assert run(mixed, out) == 2  # and nothing is tried again unasked
    assert len(reasons(out)) == 3


def test_retry_failed_tries_again_and_only_then(source, tmp_path, spoil):
    broken = True

    def fail(clip):
        if broken and clip.uri.endswith("v001.mp4"):
            raise RuntimeError("out of luck")

    spoil(fail)
    out = tmp_path / "out"
    assert run(source, out) == 2
    broken = False
    assert run(source, out) == 2
    assert run(source, out, "retry=timeout") == 2
    assert run(source, out, "retry=perception_failed") == 0
    now = status(str(out))
    assert (now.committed, now.quarantined) == (3, 0)
    assert not verify(open_store(str(out))).problems


def test_a_video_that_becomes_readable_gives_all_its_clips(source, tmp_path, monkeypatch):
    """First refused by the decoder, then surveyed anew on a retry: its first clip takes the refused unit's place."""
    from engine.ingest.reasons import IngestError, Reason
    from engine.run import plan

    def no(*_):
        raise IngestError(Reason.TIMEOUT, "the decoder hangs today")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(plan, "survey", no)
        assert run(source / "v000.mp4", out, "clip.frames=5", "clip.min_frames=5", "clip.stride=4") == 2
    assert reasons(out) == ["timeout"]
    words = ("clip.frames=5", "clip.min_frames=5", "clip.stride=4", "retry=failed")
    assert run(source / "v000.mp4", out, *words) == 0
    now = status(str(out))
    assert (now.committed, now.quarantined, now.todo) == (2, 0, 0)
    assert not verify(open_store(str(out))).problems


def test_out_of_memory_has_its_own_reason(source, tmp_path, spoil):
    def exhaust(clip):
        raise MemoryError("no room")

    spoil(exhaust)
    assert run(source, tmp_path / "out", "limit=1") == 2
    assert reasons(tmp_path / "out") == ["out_of_memory"]


def test_limit_grows(source, tmp_path):
    out = tmp_path / "out"
    assert run(source, out, "limit=1") == 0
    assert status(str(out)).committed == 1
    assert run(source, out, "limit=1") == 0
    assert status(str(out)).committed == 1
    assert run(source, out) == 0
    assert status(str(out)).committed == 3


def test_new_videos_extend_the_plan_and_copies_are_done_once(source, tmp_path):
    growing, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(source, growing)
    assert run(growing, out) == 0
    first = shards_of(out)
    write_input(tmp_path / "more", 1, seed=9)
    shutil.move(tmp_path / "more" / "v000.mp4", growing / "w.mp4")
    shutil.move(tmp_path / "more" / "v000", growing / "w")
    shutil.copy(growing / "v000.mp4", growing / "copy.mp4")
    assert run(growing, out) == 0
    assert status(str(out)).committed == 4
    assert first.items() <= shards_of(out).items()


def test_a_changed_configuration_is_refused_with_a_diff(source, tmp_path, capsys):
    assert run(source, tmp_path / "out", "limit=1") == 0
    assert run(source, tmp_path / "out", "clip.fps=8") == 3
    assert "clip.fps: 16.0 in the output, 8.0 now" in capsys.readouterr().err


def test_exit_codes_of_what_cannot_begin(source, tmp_path, capsys, monkeypatch):
    assert run(tmp_path / "nowhere", tmp_path / "out") == 3
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert run(source, tmp_path / "file" / "out") == 5
    assert "storage" in capsys.readouterr().err

    def absent(options, wanted):
        raise ImportError("no module named networks")

    monkeypatch.setitem(registry.BUNDLES, "precomputed", absent)
    assert run(source, tmp_path / "out") == 3
    assert "no module named networks" in capsys.readouterr().err
    assert status(str(tmp_path / "out")).quarantined == 0  # a missing package is no clip's fault


def test_two_drivers_at_once(source, tmp_path, capsys):
    from shards.run import Run

    out = tmp_path / "out"
    assert run(source, out, "limit=1") == 0
    config = json.loads((out / "_run.json").read_text())
    from shards.run import ShardLimits

    with Run.open(str(out), name="metaworld", config=config["config"], limits=ShardLimits(**config["limits"])):
        assert run(source, out) == 5
    assert "storage" in capsys.readouterr().err


def test_dry_run_says_what_there_is_to_do_and_writes_nothing(source, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(source, out, "dry_run=true") == 0
    assert "3 videos, 3 not planned yet" in capsys.readouterr().out
    assert not out.exists()
    run(source, out)
    before = sorted(out.rglob("*"))
    capsys.readouterr()
    assert run(source, out, "dry_run=true") == 0
    text = capsys.readouterr().out
    assert "0 not planned yet" in text
    assert "for 0 planned clips and some 0 of the other videos" in text
    shutil.copytree(source, tmp_path / "more")
    assert run(tmp_path / "more", out, "dry_run=true") == 0  # three other videos of the size of those planned
    text = capsys.readouterr().out
    assert "3 not planned yet" in text
    assert "for 0 planned clips and some 3 of the other videos" in text
    assert sorted(out.rglob("*")) == before


def test_sigterm_drains(source, tmp_path, spoil):
    """The clip in hand is finished and spooled, the next is not begun, and the next run ends with the same bytes."""
    spoil(lambda clip: os.kill(os.getpid(), signal.SIGTERM) if clip.uri.endswith("v000.mp4") else None)
    out = tmp_path / "out"
    assert run(source, out) == 128 + signal.SIGTERM
    now = status(str(out))
    assert (now.committed + now.spooled, now.todo) == (1, 2)
    spoil(lambda clip: None)
    assert run(source, out) == 0
    assert run(source, tmp_path / "straight") == 0
    assert shards_of(out) == shards_of(tmp_path / "straight")


def test_events_tell_seconds_bytes_and_memory_of_every_stage(source, tmp_path):
    assert run(source, tmp_path / "out", "limit=1") == 0
    events = read_events(open_store(str(tmp_path / "out")))
    stages = [event["stage"] for event in events]
    assert stages[:4] == ["decode", "track", "geometry", "depth"]
    assert stages[-2:] == ["pack", "unit"]
    whole = events[-1]
    assert whole["status"] == "done"
    assert whole["bytes"] > 10_000
    assert 50 < whole["peak_mb"] < 4000
    assert whole["seconds"] == pytest.approx(sum(e["seconds"] for e in events[:-1]), abs=0.01)
    decoded, packed = events[0], events[-2]
    assert decoded["bytes"] == 9 * HEIGHT * WIDTH * 3
    assert packed["bytes"] == whole["bytes"]
    assert whole["peak_mb"] == max(e["peak_mb"] for e in events[:-1])
