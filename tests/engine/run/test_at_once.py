"""Two clips in one actor, models in actors of their own, and how many of each a cluster gets."""

import pytest
from unroll_inputs import WORDS, run_on_ray, shards_of, write_input

from engine.config import load
from engine.perception.foundation import from_dotlist, weight_names
from engine.run.drive import drive
from engine.run.ray import BYTES_PER_PIXEL, placement
from shards.run import failures

CLIP = BYTES_PER_PIXEL * 81 * 480 * 832


def options(*words):
    return load(["input=x", "output=y", "runner=ray", *words])


def test_an_actor_per_gpu_takes_two_clips_and_the_cpus_have_work():
    h100 = {"GPU": 2.0, "CPU": 32.0, "object_store_memory": 1e12}
    found = placement(options("perception=foundation"), h100)
    assert found == (1.0, 2, 2, 2 * 2 + 32)
    assert placement(options("perception=foundation", "runner.ray.in_flight=3"), h100)[3] == 6
    assert placement(options("perception=foundation", "runner.ray.gpus=0.5"), h100)[:3] == (0.5, 4, 2)


def test_split_models_share_a_gpu():
    words = ["perception=foundation", "perception.foundation.split=true"]
    assert placement(options(*words), {"GPU": 2.0, "CPU": 16.0})[:3] == (0.0, 2, 2)
    one_each = [*words, "perception.foundation.share=1.0"]
    assert placement(options(*one_each), {"GPU": 6.0, "CPU": 16.0})[:2] == (0.0, 2)
    with pytest.raises(ValueError, match=r"split=true: not for models that fill in"):
        placement(options(*words, "perception.tracker=precomputed", "perception.precomputed.fill=foundation"), {})


def test_without_a_gpu_one_clip_per_actor_and_one_beside_it():
    assert placement(options("perception=embedded"), {"CPU": 8.0}) == (0.0, 4, 1, 8)
    assert placement(options("perception=foundation"), {"CPU": 2.0}) == (0.0, 1, 1, 2)


def test_memory_bounds_what_is_in_flight():
    tight = {"GPU": 1.0, "CPU": 64.0, "object_store_memory": 10.0 * CLIP}
    assert placement(options("perception=foundation"), tight)[3] == 6, "60 % of the store"
    assert placement(options("perception=foundation", "runner.ray.budget_gb=0.001"), tight)[3] == 1


@pytest.mark.slow
def test_two_clips_are_in_one_actor_at_once(tmp_path):
    """Each of the two waits in the tracker until the other is there too; one after the other they would not meet."""
    source = write_input(tmp_path / "in", 2)
    for i in range(2):
        (source / f"v{i:03d}.poison").write_text("meet 60")
    words = ["runner.ray.actors=1", "runner.ray.in_flight=4"]
    assert run_on_ray(source, tmp_path / "out", *words, "runner.ray.at_once=2") == 0
    assert drive(load([f"input={source}", f"output={tmp_path / 'straight'}", *WORDS])) == 0
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "straight")

    for i in range(2):
        (source / f"v{i:03d}.poison").write_text("meet 2")
    assert run_on_ray(source, tmp_path / "alone", *words, "runner.ray.at_once=1", "runner.attempts=1") == 2
    assert {f["message"] for f in failures(str(tmp_path / "alone"))} == {"RuntimeError: no other clip came"}


@pytest.mark.slow
@pytest.mark.fault
def test_an_actor_that_dies_with_two_clips_loses_none(tmp_path):
    source = write_input(tmp_path / "in", 4)
    (source / "v001.poison").write_text("kill_once")
    words = ["runner.ray.actors=1", "runner.ray.in_flight=4", "runner.ray.at_once=2"]
    assert run_on_ray(source, tmp_path / "out", *words) == 0
    assert (source / "v001.died").exists()
    (source / "v001.poison").unlink()
    assert drive(load([f"input={source}", f"output={tmp_path / 'straight'}", *WORDS])) == 0
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "straight")


@pytest.mark.slow
def test_split_models_make_the_bytes_of_fused_ones(tmp_path):
    """Shrunken networks with random weights, through the whole engine, in three processes and in one."""
    from engine.perception.random_weights import write

    small = ["moge.variant=vits", "moge.tokens=60", "sam2.variant=tiny", "sam2.side=64"]
    small += ["depth_anything.short_side=70", "weights.random=true", f"weights.root={tmp_path / 'weights'}"]
    write(tmp_path / "weights", weight_names(from_dotlist(small)), small=True)
    source = write_input(tmp_path / "in", 2)
    small += ["detector.threshold=0.8", "detector.keyframes=1", "detector.overlap=0.02"]  # random weights: a few boxes
    words = ["perception=foundation"]
    words += [f"perception.foundation.{word}" for word in small]
    assert run_on_ray(source, tmp_path / "out", *words, "perception.foundation.split=true", "runner.ray.at_once=2") == 0
    assert drive(load([f"input={source}", f"output={tmp_path / 'fused'}", *WORDS, *words])) == 0
    assert shards_of(tmp_path / "out") == shards_of(tmp_path / "fused")
