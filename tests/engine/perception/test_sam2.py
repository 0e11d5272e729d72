"""SAM 2.1: the official checkpoint, the published predictor's masks, Hydra left alone, memory bounded."""

import subprocess
import sys
import textwrap

import cv2
import numpy as np
import pytest
import torch

from engine.perception.checkpoint import CheckpointError
from engine.perception.compute import DeviceFrames
from engine.perception.sam2 import Sam2, Sam2Options
from tests.engine.perception.small import make_clip

SIDE = 256


@pytest.fixture(scope="module")
def checkpoint(weights_root):
    return weights_root / "sam2.1-hiera-tiny" / "sam2.1_hiera_tiny.pt"


def sam2(checkpoint, **options):
    return Sam2(Sam2Options(variant="tiny", side=SIDE, **options), checkpoint, DeviceFrames(torch.device("cpu")))


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return sam2(checkpoint)


@pytest.fixture(scope="module")
def moving_clip(tmp_path_factory):
    """Six square frames of a bright disc that moves over noise, and the folder of JPEGs they were read from."""
    folder = tmp_path_factory.mktemp("jpegs")
    rng = np.random.default_rng(0)
    ground = cv2.resize(rng.integers(0, 160, (32, 32, 3), dtype=np.uint8), (SIDE, SIDE))
    frames = []
    for t in range(6):
        image = cv2.circle(ground.copy(), (70 + 15 * t, 120), 30, (250, 240, 90), -1)
        cv2.imwrite(str(folder / f"{t:05d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 100])
        from PIL import Image

        frames.append(np.array(Image.open(folder / f"{t:05d}.jpg").convert("RGB")))
    return make_clip(np.stack(frames)), folder


BOXES = [(40.0, 90.0, 190.0, 150.0), (10.0, 10.0, 60.0, 60.0)]


def test_masks_equal_the_published_predictor(loaded, moving_clip):
    """Frames through memory, batched features and forgotten memory give what init_state and JPEG files give."""
    clip, folder = moving_clip
    found = loaded.follow(clip, 2, BOXES)
    assert found.shape == (2, 6, SIDE // 4, SIDE // 4)
    assert found.dtype == np.float16
    state = loaded.network.init_state(str(folder))
    for i, box in enumerate(BOXES):
        loaded.network.add_new_points_or_box(state, frame_idx=2, obj_id=i, box=np.array(box, np.float32))
    expected = np.zeros((2, 6, SIDE, SIDE), np.float32)
    for reverse in (False, True):
        for t, _, masks in loaded.network.propagate_in_video(state, start_frame_idx=2, reverse=reverse):
            expected[:, t] = masks[:, 0]
    full = [[cv2.resize(m.astype(np.float32), (SIDE, SIDE)) for m in one] for one in found]
    np.testing.assert_allclose(np.array(full), expected.clip(-10, 10), atol=0.02)


def test_a_batch_equals_single_frames(checkpoint, loaded, moving_clip):
    clip, _ = moving_clip
    a = loaded.follow(clip, 0, BOXES[:1])
    b = sam2(checkpoint, batch=1, features=1).follow(clip, 0, BOXES[:1])
    np.testing.assert_allclose(a, b, atol=5e-3)


def test_only_memory_in_reach_is_kept(loaded):
    """Of the tracker's memory only what its attention can reach stays, from where it is and from the prompt."""
    state = {"output_dict_per_obj": {0: {"non_cond_frame_outputs": {}}}}
    held = state["output_dict_per_obj"][0]["non_cond_frame_outputs"]
    for t in [*range(100, 400), *range(100, -1, -1)]:
        held[t] = None
        loaded._forget(state, t, 100)
        assert len(held) <= 4 * max(loaded.network.num_maskmem, loaded.network.max_obj_ptrs_in_encoder) + 2
    assert {0, 1, 8} <= set(held)


def most_held(model, T, monkeypatch):
    """Most frames of memory and of image features that are there at a time while a clip of T frames is followed."""
    ground = cv2.resize(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8), (64, 64))
    clip = make_clip(np.repeat(ground[None], T, 0))
    memory, features, forget = [], [], model._forget

    def counted(state, now, start):
        forget(state, now, start)
        memory.append(len(state["output_dict_per_obj"][0]["non_cond_frame_outputs"]))
        features.append(len(model._features[id(clip.frames)].frames))

    monkeypatch.setattr(model, "_forget", counted)
    model.follow(clip, T // 2, [(10.0, 10.0, 40.0, 40.0)])
    monkeypatch.undo()
    model.release(clip)
    return max(memory), max(features)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_the_clip(checkpoint, monkeypatch):
    """The same in a real run, both ways from the middle."""
    model = Sam2(Sam2Options(variant="tiny", side=64, features=8), checkpoint, DeviceFrames(torch.device("cpu")))
    reach = max(model.network.num_maskmem, model.network.max_obj_ptrs_in_encoder)
    short, long = (most_held(model, T, monkeypatch) for T in (80, 120))
    assert short == long
    assert long[0] <= 4 * reach + 2 < 80, "what attention reaches from here and from the prompt, both ways"
    assert long[1] == 8


def test_features_are_bounded_and_encoded_once(checkpoint, moving_clip):
    model = sam2(checkpoint, batch=2, features=4)
    model.follow(moving_clip[0], 0, BOXES[:1])
    (held,) = model._features.values()
    assert len(held.frames) <= 4
    assert model.frames.copies == 1
    model.release(moving_clip[0])
    assert not model._features


def test_half_precision_stays_near_the_float32_reference(checkpoint, loaded, moving_clip):
    clip, _ = moving_clip
    a = loaded.follow(clip, 0, BOXES[:1]).astype(float)
    b = sam2(checkpoint, precision="bf16").follow(clip, 0, BOXES[:1]).astype(float)
    assert np.median(np.abs(a - b)) < 0.05 * max(1.0, np.abs(a).max())


APPLICATION = """
import sys
from pathlib import Path
import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra import compose
from omegaconf import DictConfig

@hydra.main(version_base=None, config_path="conf", config_name="app")
def main(cfg: DictConfig) -> None:
    before = GlobalHydra.instance().hydra
    import numpy as np, torch
    from engine.perception.compute import DeviceFrames
    from engine.perception.sam2 import Sam2, Sam2Options
    model = Sam2(Sam2Options(variant="tiny", side=64), Path(cfg.checkpoint), DeviceFrames(torch.device("cpu")))
    assert GlobalHydra.instance().hydra is before, "Hydra's global state was changed"
    assert compose("app").greeting == "hello", "the application's own configuration is lost"
    print("loaded", cfg.greeting)

main()
"""


def test_it_loads_inside_a_hydra_application(checkpoint, tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "app.yaml").write_text("greeting: hello\ncheckpoint: ???\n")
    (tmp_path / "app.py").write_text(textwrap.dedent(APPLICATION))
    command = [sys.executable, str(tmp_path / "app.py"), f"checkpoint={checkpoint}", f"hydra.run.dir={tmp_path}/out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=".", env=None)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "loaded hello" in done.stdout


def test_a_hydra_application_can_start_after_it(loaded):
    from hydra.core.global_hydra import GlobalHydra

    assert not GlobalHydra.instance().is_initialized()


def test_unusable_checkpoints_say_what_is_wrong(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint.*make weights"):
        sam2(tmp_path / "absent.pt")
    cut = tmp_path / "cut.pt"
    cut.write_bytes(checkpoint.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="truncated"):
        sam2(cut)
    state = torch.load(checkpoint, weights_only=True)["model"]
    state["no_obj_ptr_of_another_revision"] = state.pop("no_obj_ptr")
    torch.save({"model": state}, cut)
    with pytest.raises(CheckpointError, match=r"1 missing: no_obj_ptr; 1 unexpected: no_obj_ptr_of_another_revision"):
        sam2(cut)
    with pytest.raises(CheckpointError, match="another variant or revision"):
        Sam2(Sam2Options(variant="small", side=SIDE), checkpoint, DeviceFrames(torch.device("cpu")))
