"""MoGe-2: the official file format, the published forward pass, and the two-pass field of view."""

import numpy as np
import pytest
import torch

from engine.geometry.camera import intrinsics, unproject_depth
from engine.perception.checkpoint import CheckpointError
from engine.perception.compute import DeviceFrames
from engine.perception.moge import (
    MoGe,
    MoGeOptions,
    load_moge,
    robust_focal,
    solve_focal_shift,
    solve_shift,
    view_plane,
)

CPU = torch.device("cpu")


@pytest.fixture
def checkpoint(weights_root):
    return weights_root / "moge-2-vits-normal" / "model.pt"


def moge(checkpoint, **options):
    return MoGe(MoGeOptions(variant="vits", tokens=60, **options), checkpoint, DeviceFrames(CPU))


def test_units_shapes_and_one_field_of_view(checkpoint, noise_clip):
    found = moge(checkpoint).geometry(noise_clip, None)
    T, (H, W) = len(noise_clip.frames), noise_clip.size
    assert found.depth.shape == found.sky.shape == found.confidence.shape == (T, H, W)
    assert found.K.shape == (T, 3, 3)
    assert (found.K[0] == found.K).all()
    assert found.K[0, 0, 2] == W / 2
    assert found.K[0, 1, 2] == H / 2
    assert found.K_source == "estimated"
    assert (found.depth[found.sky] == 0).all()
    assert (found.confidence[found.depth == 0] == 0).all()
    assert np.isfinite(found.depth).all()
    assert (found.depth >= 0).all()
    assert found.log_scale_sigma >= MoGeOptions().scale_sigma


def test_depth_equals_the_published_inference(checkpoint, noise_clip):
    """With the same field of view, depth is what moge's own `infer` gives."""
    found = moge(checkpoint).geometry(noise_clip, None)
    fov = np.degrees(2 * np.arctan(noise_clip.size[1] / 2 / found.K[0, 0, 0]))
    images = torch.from_numpy(noise_clip.frames).permute(0, 3, 1, 2).float() / 255
    reference = load_moge(checkpoint).infer(
        images, num_tokens=60, fov_x=torch.full((len(images),), float(fov)), use_fp16=False, force_projection=False
    )
    expected = torch.where(reference["mask"], reference["depth"], 0).numpy()
    np.testing.assert_allclose(found.depth, expected, rtol=2e-3, atol=1e-6)


def test_users_intrinsics_are_kept(checkpoint, noise_clip):
    from dataclasses import replace

    K = np.array([[100.0, 0, 40], [0, 101, 30], [0, 0, 1]])
    found = moge(checkpoint).geometry(replace(noise_clip, K=K, K_source="user"), None)
    np.testing.assert_allclose(found.K[3], K)
    assert found.K_source == "user"


def test_a_batch_equals_single_frames(checkpoint, noise_clip):
    one, many = moge(checkpoint, batch=1), moge(checkpoint, batch=3)
    a, b = one.geometry(noise_clip, None), many.geometry(noise_clip, None)
    np.testing.assert_allclose(a.depth, b.depth, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(a.K, b.K, rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_stays_near_the_float32_reference(checkpoint, noise_clip, precision):
    reference = moge(checkpoint).geometry(noise_clip, None)
    half = moge(checkpoint, precision=precision).geometry(noise_clip, None)
    both = (reference.depth > 0) & (half.depth > 0)
    assert both.mean() > 0.9 * (reference.depth > 0).mean()
    assert np.median(np.abs(np.log(half.depth[both] / reference.depth[both]))) < 0.02


def test_normals_are_unit_and_kept_only_when_asked(checkpoint, noise_clip):
    assert moge(checkpoint).geometry(noise_clip, None).normals is None
    normals = moge(checkpoint, normals=True).geometry(noise_clip, None).normals
    np.testing.assert_allclose(np.linalg.norm(normals.astype(float), axis=-1), 1, atol=2e-3)


def scene(focal_px: float, shift: float, H: int = 60, W: int = 80):
    """A sub-sampled affine point map of a bumpy surface seen by a camera of known focal, its z short of `shift`."""
    K = intrinsics(focal_px, focal_px, W, H)
    z = 3 + np.sin(np.linspace(0, 9, H))[:, None] + np.cos(np.linspace(0, 7, W))[None]
    points = unproject_depth(K, z)
    points[..., 2] -= shift
    index = np.ix_((np.arange(64) * H // 64), (np.arange(64) * W // 64))
    return points[index], view_plane(H, W, 64), focal_px / (np.hypot(H, W) / 2)


@pytest.mark.parametrize(("focal_px", "shift"), [(60.0, 0.4), (90.0, -0.7)])
def test_focal_and_shift_are_recovered(focal_px, shift):
    points, uv, focal = scene(focal_px, shift)
    mask = np.ones((64, 64), bool)
    found = solve_focal_shift(points, mask, uv)
    assert found == pytest.approx((focal, shift), abs=1e-3)
    assert solve_shift(points, mask, uv, focal) == pytest.approx(shift, abs=1e-4)


def test_focal_and_shift_agree_with_the_published_solver():
    from moge.utils.geometry_torch import recover_focal_shift

    rng = np.random.default_rng(1)
    points, _, _ = scene(70.0, 0.3, 64, 64)
    points = points + rng.normal(0, 0.05, points.shape)
    focal, shift = recover_focal_shift(torch.from_numpy(points).float()[None])
    found = solve_focal_shift(points, np.ones((64, 64), bool), view_plane(64, 64, 64))
    assert found == pytest.approx((float(focal), float(shift)), rel=2e-3)


def test_one_wild_frame_does_not_move_the_field_of_view():
    assert robust_focal([1.0, 1.01, 0.99, 9.0, float("nan")], "clip") == pytest.approx(1.005, abs=0.006)
    with pytest.raises(ValueError, match=r"clip.*no valid geometry"):
        robust_focal([float("nan")], "clip")


def test_a_batch_that_does_not_fit_is_halved_for_good(checkpoint, noise_clip, monkeypatch):
    """As on a device with room for two frames: the same answer, in smaller batches, from then on."""
    model = moge(checkpoint, batch=5)
    whole, forward, seen = model.geometry(noise_clip, None), model.network.forward, []

    def little_memory(images, **options):
        seen.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(images, **options)

    monkeypatch.setattr(model.network, "forward", little_memory)
    found = model.geometry(noise_clip, None)
    assert (seen, model.batches.size) == ([5, 2, 2, 1], 2)
    np.testing.assert_allclose(found.depth, whole.depth, rtol=1e-4, atol=1e-6)
    model.geometry(noise_clip, None)
    assert seen[4:] == [2, 2, 1]


def test_unusable_checkpoints_say_what_is_wrong(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint.*make weights"):
        load_moge(tmp_path / "absent.pt")
    cut = tmp_path / "cut.pt"
    cut.write_bytes(checkpoint.read_bytes()[:200_000])
    with pytest.raises(CheckpointError, match="truncated"):
        load_moge(cut)
    other = tmp_path / "other.pt"
    torch.save({"model": {}}, other)
    with pytest.raises(CheckpointError, match="wrong file"):
        load_moge(other)
    torch.save({"model_config": {"encoder": "dinov2_vitl14"}, "model": {}}, other)
    with pytest.raises(CheckpointError, match="MoGe-1"):
        load_moge(other)
    whole = torch.load(checkpoint, weights_only=True)
    name = "scale_head.0.weight"
    kept = {k: v for k, v in whole["model"].items() if k != name}
    torch.save({**whole, "model": kept}, other)
    with pytest.raises(CheckpointError, match=f"1 missing: {name}"):
        load_moge(other)
    torch.save({**whole, "model": {**kept, name: torch.zeros(2, 2), "stray": torch.zeros(1)}}, other)
    with pytest.raises(CheckpointError, match=r"1 unexpected: stray; 1 of another shape: scale_head.0.weight"):
        load_moge(other)
