"""The accuracy bench's own numbers, on paths and masks whose errors are known."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from engine.geometry.camera import pose
from engine.stages.options import StageOptions
from tests.bench.ablations import ABLATIONS, judge_gains
from tests.bench.accuracy import cached, cloud_errors, judge, mask_iou, path_errors
from tests.bench.davis import read_davis


def path(frames: int = 30) -> np.ndarray:
    t = np.linspace(0, 1, frames)
    return pose(np.repeat(np.eye(3)[None], frames, 0), np.stack([0.2 * np.sin(6 * t), 0.1 * t**2, 4 * t], -1))


def test_a_scaled_path_has_that_scale_error_and_no_shape_error():
    found = path()
    found[:, :3, 3] *= 1.05
    errors = path_errors(found, path())
    assert errors["scale"] == pytest.approx(0.05, abs=1e-6)
    assert errors["sim3"] == pytest.approx(0, abs=1e-6)
    assert 0.01 < errors["ate"] < 0.02  # 5 % of the spread about the middle of a 4 m path


def test_a_standing_camera_that_moves_has_drift():
    found = pose(np.repeat(np.eye(3)[None], 5, 0), np.arange(5)[:, None] * [0.0, 0.0, 0.1])
    errors = path_errors(found, np.repeat(np.eye(4)[None], 5, 0))
    assert errors["drift_m"] == pytest.approx(0.4)


def test_goals_are_missed_aloud():
    good = {"camera": "walk", "kind": "general", "ate": 0.01, "rotation_deg": 0.1, "scale": -0.01, "subject": 0.5}
    good |= {"seed": 0, "flicker": 0.02, "flicker_raw": 0.05}
    still = {"camera": "static", "kind": "static"}
    assert judge([good, still], "oracle") == []
    assert len(judge([{**good, "ate": 0.02, "scale": -0.05}, {**still, "kind": "general"}], "oracle")) == 3
    assert len(judge([{**good, "flicker": 0.03}, still], "oracle")) == 1
    assert len(judge([{**good, "iou": 0.5}], "embedded")) == 1
    assert len(judge([{"camera": "real", "variant": "davis", "iou": 0.5}], "oracle")) == 1


def test_mask_iou_counts_frames_with_people():
    truth = np.zeros((3, 10, 10), np.uint8)
    truth[:2, :5] = 1
    found = truth.copy()
    found[1, :, 5:] = 0
    assert mask_iou(found, truth) == pytest.approx(0.75)


def test_rows_are_made_once(tmp_path):
    calls = []

    def make() -> dict:
        calls.append(1)
        return {"ate": 0.5}

    assert cached(tmp_path / "a" / "row.json", make) == cached(tmp_path / "a" / "row.json", make) == {"ate": 0.5}
    assert len(calls) == 1


def test_every_ablation_switches_something_off():
    for ablation in ABLATIONS:
        with_, without = ablation.variants()
        assert with_[1] == without[1]
        assert with_[2] == StageOptions() != without[2]
        assert ablation.metrics


def test_an_ablation_without_gain_is_missed_aloud():
    def rows(with_: float, without: float) -> list[dict]:
        names = [(f"{a.name}{side}", a) for a in ABLATIONS for side in "+-"]
        return [
            {"variant": n, "camera": "walk", **dict.fromkeys(a.metrics, with_ if n.endswith("+") else without)}
            for n, a in names
        ]

    every = sum(len(a.metrics) for a in ABLATIONS)
    assert judge_gains(rows(0.01, 0.02)) == []
    assert len(judge_gains(rows(0.02, 0.02))) == len(judge_gains(rows(0.02, 0.01))) == every
    assert len(judge_gains(rows(float("nan"), 0.02))) == len(judge_gains([])) == every


def test_points_before_the_sky_are_a_wall_and_points_between_surfaces_fly():
    height, width = 20, 30
    depth = np.full((1, height, width), 4.0, np.float32)
    depth[:, :6] = 0  # the sky
    K = np.array([[[20.0, 0, 15], [0, 20, 10], [0, 0, 1]]])
    still = SimpleNamespace(c2w=np.eye(4)[None], K=K)
    uvz = np.array(
        [[5.5, 15.5, 4.0], [9.5, 15.5, 4.1], [9.5, 15.5, 3.0], [9.5, 2.5, 40.0]]
    )  # right, right, flying, wall
    xyz = np.c_[(uvz[:, :2] - K[0, :2, 2]) / 20 * uvz[:, 2:], uvz[:, 2]].astype(np.float32)
    cloud = SimpleNamespace(xyz=xyz, frame=np.zeros(4, np.int32))
    found = cloud_errors(cloud, still, SimpleNamespace(depth=depth))
    assert found == {"wall": 0.25, "flying": 0.5, "cloud_points": 4.0}


def test_masks_beside_frames_and_masks_in_a_video_are_read(tmp_path):
    truth = np.zeros((6, 32, 48), np.uint8)
    for t in range(6):
        truth[t, 8:24, 8 + 2 * t : 20 + 2 * t] = 255
        cv2.imwrite(str(tmp_path / f"{t:05d}.jpg"), np.dstack([truth[t]] * 3))
        cv2.imwrite(str(tmp_path / f"{t:05d}.png"), truth[t] // 255)
    clip, mask = read_davis(tmp_path)
    assert clip.frames.shape == (5, 32, 48, 3)
    np.testing.assert_array_equal(mask, truth[:5] > 0)
    video = tmp_path / "as_video"
    video.mkdir()
    for name in ("video", "mask"):
        writer = cv2.VideoWriter(str(video / f"{name}.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 24, (48, 32))
        for t in range(6):
            writer.write(np.dstack([truth[t]] * 3))
        writer.release()
    _, lossy = read_davis(video)
    assert mask_iou(lossy.astype(np.uint8), truth[:5]) > 0.9
    (video / "mask.mp4").unlink()
    with pytest.raises(ValueError, match=r"mask\.mp4"):
        read_davis(video)
