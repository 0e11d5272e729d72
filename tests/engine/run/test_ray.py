"""The Ray runner: the same bytes as the local one, and no innocent clip is lost whatever dies."""

import pytest
from unroll_inputs import WORDS, run_on_ray, shards_of

from engine.config import load
from engine.run.drive import drive
from engine.run.progress import read_events
from shards.run import failures, status
from shards.store import open_store

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]  # a cluster takes 10 to 20 s to start


def test_equal_bytes_and_no_work_the_second_time(source, straight, tmp_path, capfd):
    """By the command of the verb's own: it starts and ends its cluster."""
    words = [f"input={source}", f"output={tmp_path / 'out'}", *WORDS, "runner=ray", "runner.ray.cpus=2"]
    assert drive(load(words)) == 0
    assert shards_of(tmp_path / "out") == shards_of(straight)
    assert made(tmp_path / "out") == made(straight)
    capfd.readouterr()
    assert drive(load(words)) == 0
    assert "nothing new" in capfd.readouterr().out


def made(output) -> dict[tuple[str, str], tuple[int, bool]]:
    """(clip, stage) -> the bytes that it made, and whether it took any time: where people look for a bottleneck."""
    events = read_events(open_store(str(output)))
    return {
        (e["key"], e["stage"]): (e["bytes"], e["seconds"] > 0) for e in events if e["stage"] not in ("spool", "depth")
    }


@pytest.mark.fault
def test_a_poison_clip_loses_no_innocent(source, straight, tmp_path):
    """v001 kills every process that looks at it: alone it is found out, the four others are in the shards."""
    assert run_on_ray(source, tmp_path / "out", "runner.ray.in_flight=3", POISON="v001") == 2
    assert status(str(tmp_path / "out")).committed == 4
    (failure,) = failures(str(tmp_path / "out"))
    assert failure["reason"] == "worker_died"
    assert failure["uri"].endswith("v001.mp4")


@pytest.mark.fault
def test_a_death_that_was_an_accident_costs_nothing(source, straight, tmp_path):
    """An actor is killed once, with several clips in flight: the result is that of a run without accident."""
    for marker in source.glob("*.died"):
        marker.unlink()
    assert run_on_ray(source, tmp_path / "out", "runner.ray.in_flight=3", POISON_ONCE="v002") == 0
    assert (source / "v002.died").exists()
    assert shards_of(tmp_path / "out") == shards_of(straight)


@pytest.mark.fault
def test_errors_are_tried_again_and_then_explained(source, tmp_path):
    assert run_on_ray(source, tmp_path / "out", POISON_ERROR="v003") == 2
    (failure,) = failures(str(tmp_path / "out"))
    assert (failure["reason"], failure["stage"], failure["attempts"]) == ("perception_failed", "track", 2)
    assert "this clip disagrees" in failure["traceback"]


@pytest.mark.fault
def test_actors_that_never_start_end_the_run_before_any_clip(source, tmp_path, capsys):
    assert run_on_ray(source, tmp_path / "out", "runner.ray.setup_attempts=2", POISON_SETUP="1") == 3
    assert "the weights are gone" in capsys.readouterr().err
    now = status(str(tmp_path / "out"))
    assert (now.todo, now.quarantined) == (5, 0)
