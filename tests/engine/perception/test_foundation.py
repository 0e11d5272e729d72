"""The fused actor: every network from its official file format, one clip end to end, frames on the device once."""

import numpy as np
import pytest
import torch

from engine.perception import Models
from engine.perception.compute import DeviceFrames, pick_device
from engine.perception.detector import Detection
from engine.perception.foundation import (
    PARTS,
    FoundationActor,
    actor_plan,
    from_dotlist,
    load,
    weight_names,
)
from engine.perception.protocols import Depth, Geometry, Tracker
from engine.perception.weights import WeightsError
from tests.engine.perception.small import SMALL


@pytest.fixture(scope="module")
def options(weights_root):
    return from_dotlist([*SMALL, f"weights.root={weights_root}"])


@pytest.fixture(scope="module")
def actor(options):
    """The loaded actor; two boxes of the script go to SAM 2, because random weights detect nothing meaningful."""
    actor = FoundationActor(options)
    actor.setup()
    detect = actor.models["tracker"].finder.detect

    def scripted(clip, keyframes):
        detect(clip, keyframes)  # the network runs all the same
        return [Detection(keyframes[0], (8.0, 8.0, 40.0, 60.0), "person", 0.9)]

    actor.models["tracker"].finder.detect = scripted
    return actor


def test_a_clip_through_the_fused_actor(actor, noise_clip):
    perceived = actor.process(noise_clip)
    T, (H, W) = len(noise_clip.frames), noise_clip.size
    assert perceived.tracks.labels.shape == perceived.geometry.depth.shape == (T, H, W)
    assert (perceived.tracks.dynamic >= (perceived.tracks.labels > 0)).all()
    assert perceived.depth.kind == "disparity"
    assert np.isfinite(perceived.geometry.K).all()
    models = {**perceived.tracks.models, **perceived.geometry.models, **perceived.depth.models}
    assert set(models) == {"detector", "sam2", "moge", "depth_anything"}
    assert all(len(m["sha256"]) == 64 and m["licence"] and m["revision"] == "random" for m in models.values())


def test_frames_go_to_the_device_once(actor, noise_clip):
    before = actor.frames.copies
    actor.process(noise_clip)
    assert actor.frames.copies == before + 1
    held = DeviceFrames(torch.device("cpu"), clips=2)
    assert held(noise_clip).dtype == torch.uint8
    assert held(noise_clip) is held(noise_clip)


def test_only_the_clips_in_flight_are_held(noise_clip):
    from dataclasses import replace

    held = DeviceFrames(torch.device("cpu"), clips=2)
    for _ in range(4):
        held(replace(noise_clip, frames=noise_clip.frames.copy()))
    assert len(held._held) == 2


def test_split_actors_say_what_the_fused_one_says(actor, options, noise_clip):
    fused = actor.process(noise_clip)
    geometry, depth = FoundationActor(options, ("geometry",)), FoundationActor(options, ("depth",))
    geometry.setup()
    depth.setup()
    assert list(geometry.models) == ["geometry"]
    found = geometry.geometry(noise_clip, fused.tracks)
    np.testing.assert_array_equal(found.depth, fused.geometry.depth)
    np.testing.assert_array_equal(depth.depth(noise_clip, fused.tracks, found).values, fused.depth.values)
    with pytest.raises(RuntimeError, match="track/geometry/depth apart"):
        geometry.process(noise_clip)


def test_load_gives_the_bundle(options):
    models = load(options)
    assert isinstance(models, Models)
    assert isinstance(models.tracker, Tracker)
    assert isinstance(models.geometry, Geometry)
    assert isinstance(models.depth, Depth)


def test_absent_weights_stop_before_any_work(tmp_path, monkeypatch):
    import engine.perception.foundation as foundation

    monkeypatch.setattr(foundation, "_BUILD", {})  # reaching a builder would raise KeyError
    with pytest.raises(WeightsError) as caught:
        load(from_dotlist([f"weights.root={tmp_path}"]))
    said = str(caught.value)
    for name in ("moge-2-vitl-normal/model.pt", "sam2.1-hiera-large", "depth-anything-v2-small", "grounding-dino-tiny"):
        assert name in said
    assert "make weights" in said


def test_the_plan_of_actors():
    (fused,) = actor_plan(from_dotlist(["device=cpu"]))
    assert (fused.parts, fused.gpus) == (PARTS, 0)
    assert [s.name for s in actor_plan(from_dotlist(["device=cpu", "split=true", "depth=none"]))] == [
        "tracker",
        "geometry",
    ]


def test_options_are_checked():
    assert weight_names(from_dotlist(["depth=none", "sam2.variant=base-plus"]))[-1] == "moge-2-vitl-normal"
    for word in ("moge.variant=vitx", "moge.tokenz=3", "moge.tokens=many"):
        with pytest.raises(ValueError, match=r"foundation perception|vitl, vitb, vits"):
            from_dotlist([word])
    if not torch.cuda.is_available():
        assert pick_device("auto").type == "cpu"
        with pytest.raises(ValueError, match="sees no CUDA device; use device=auto"):
            pick_device("cuda:0")


def test_close_gives_memory_back_and_setup_works_again(options, noise_clip):
    actor = FoundationActor(options, ("depth",))
    actor.setup()
    actor.depth(noise_clip, None, None)
    actor.close()
    assert not actor.models
    assert not actor.frames._held
    actor.setup()
    assert actor.models


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "names"), [("inductor", ["depth_anything"]), ("aot_eager", ["moge", "sam2"])])
def test_compiled_networks_say_what_the_plain_ones_say(options, noise_clip, monkeypatch, backend, names):
    """Depth Anything through the default compiler; MoGe-2 and SAM 2's image encoder traced, which is most of the way:
    compiling all three takes ten minutes of a CPU."""
    from dataclasses import replace

    compile_ = torch.nn.Module.compile
    asked = []

    def with_backend(module, **options):
        asked.append(type(module).__name__)
        compile_(module, backend=backend, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", with_backend)
    part_of = {"depth_anything": "depth", "moge": "geometry", "sam2": "tracker"}

    def answers(on):
        changed = {name: replace(getattr(options, name), compile=on) for name in names}
        actor = FoundationActor(replace(options, **changed), [part_of[name] for name in names])
        actor.setup()
        ask = {
            "depth_anything": lambda: actor.depth(noise_clip, None, None).values,
            "moge": lambda: actor.geometry(noise_clip, None).depth,
            "sam2": lambda: actor.models["tracker"].follower.follow(noise_clip, 0, [(8.0, 8.0, 40.0, 60.0)]),
        }
        return [ask[name]().astype(np.float32) for name in names]

    plain = answers(False)
    assert not asked
    for expected, found in zip(plain, answers(True), strict=True):
        np.testing.assert_allclose(found, expected, rtol=5e-3, atol=5e-3 * np.abs(expected).max())
    assert len(asked) == len(names)
