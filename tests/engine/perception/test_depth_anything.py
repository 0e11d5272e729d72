"""Depth Anything V2: disparity or metres by the checkpoint's own word, the published preprocessing, clear errors."""

import json
import shutil

import numpy as np
import pytest
import torch

from engine.perception.checkpoint import CheckpointError
from engine.perception.compute import DeviceFrames
from engine.perception.depth_anything import DepthAnything, DepthAnythingOptions, input_size, prepare


def model(folder, **options):
    return DepthAnything(DepthAnythingOptions(short_side=70, **options), folder, DeviceFrames(torch.device("cpu")))


@pytest.fixture
def folder(weights_root):
    return weights_root / "depth-anything-v2-small"


def test_relative_models_give_disparity_and_metric_ones_metres(weights_root, folder, noise_clip):
    found = model(folder).depth(noise_clip, None, None)
    assert found.kind == "disparity"
    assert found.values.shape == noise_clip.frames.shape[:3]
    assert (found.values >= 0).all()
    metric = model(weights_root / "depth-anything-v2-metric-indoor-small", variant="metric-indoor-small")
    values = metric.depth(noise_clip, None, None)
    assert values.kind == "metric"
    assert (values.values > 0).all()
    assert (values.values < 20).all(), "the indoor model's range ends at 20 m"


def test_the_variant_and_the_checkpoint_must_agree(weights_root, folder):
    with pytest.raises(CheckpointError, match=r"gives disparity, but .*metric-indoor-small is a metric model"):
        model(folder, variant="metric-indoor-small")


def test_a_batch_equals_single_frames(folder, noise_clip):
    a = model(folder, batch=1).depth(noise_clip, None, None).values
    b = model(folder, batch=5).depth(noise_clip, None, None).values
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near_the_float32_reference(folder, noise_clip, precision):
    a = model(folder).depth(noise_clip, None, None).values
    b = model(folder, precision=precision).depth(noise_clip, None, None).values
    assert np.median(np.abs(a - b)) < 0.03 * np.ptp(a)


@pytest.mark.parametrize("size", [(480, 832), (832, 480), (100, 100)])
def test_preprocessing_is_the_published_one(size):
    from transformers import DPTImageProcessor

    rng = np.random.default_rng(0)
    frames = np.repeat(np.repeat(rng.integers(0, 256, (1, *(s // 4 for s in size), 3), dtype=np.uint8), 4, 1), 4, 2)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    processor = DPTImageProcessor(
        size={"height": 518, "width": 518},
        ensure_multiple_of=14,
        keep_aspect_ratio=True,
        resample=3,
        image_mean=mean.tolist(),
        image_std=std.tolist(),
    )
    expected = processor(list(frames), return_tensors="pt")["pixel_values"]
    found = prepare(torch.from_numpy(frames), 518, mean, std)
    assert found.shape == expected.shape
    assert (found - expected).abs().median() < 0.01
    assert all(side % 14 == 0 for side in input_size(*size, 518))


def test_unusable_folders_say_what_is_wrong(folder, weights_root, tmp_path):
    with pytest.raises(CheckpointError, match="make weights"):
        model(tmp_path)
    with pytest.raises(CheckpointError, match="of type 'grounding-dino', 'depth_anything' was expected"):
        model(weights_root / "grounding-dino-tiny")
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="truncated"):
        model(broken)

    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    lost = state.pop("head.conv3.weight")
    save_file(state, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing: head.conv3.weight"):
        model(broken)
    save_file({**state, "head.conv3.weight": lost[..., :0]}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"another shape: head\.conv3\.weight"):
        model(broken)
    (broken / "config.json").write_text(json.dumps({"model_type": "dpt"}))
    with pytest.raises(CheckpointError, match="wrong folder"):
        model(broken)
