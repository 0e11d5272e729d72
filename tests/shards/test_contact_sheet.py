"""The contact sheet shows what the sample says: colours where the labels are, the path where the camera went."""

import numpy as np
import pytest

from shards import depth16
from shards.contact_sheet import contact_sheet, depth_colours, overlay_labels, top_down
from shards.palette import subject_colour
from shards.schema import QUALITY

T, H, W = 5, 60, 104


@pytest.fixture
def sample() -> dict:
    """A camera that walks 2 m forward while one subject crosses 4 m ahead."""
    rng = np.random.default_rng(0)
    c2w = np.tile(np.eye(4, dtype=np.float32), (T, 1, 1))
    c2w[:, 2, 3] = np.linspace(0, 2, T)
    labels = np.zeros((T, H, W), np.uint8)
    labels[:, 20:50, 40:55] = 1
    depth = np.full((T, H, W), 8, np.float32)
    depth[labels > 0] = 4
    code = depth16.encode(depth, 1, 10)
    mean = np.stack([np.linspace(-1, 1, T), np.zeros(T), np.full(T, 4)], -1)[None].astype(np.float32)
    rgb = rng.integers(0, 255, (T, H, W, 3), np.uint8)
    return {
        "target.mp4": rgb,
        "masks.npz": {"labels": labels, "dynamic": labels > 0},
        "depth.npz": {"code": code, "range": np.array([1, 10], np.float32)},
        "camera.npz": {
            "K": np.tile(np.array([[90, 0, 52], [0, 90, 30], [0, 0, 1]], np.float32), (T, 1, 1)),
            "c2w": c2w,
            "up": np.array([0, -1, 0], np.float32),
        },
        "subjects.npz": {
            "mean": mean,
            "cov": np.tile(0.04 * np.eye(3, dtype=np.float32), (1, T, 1, 1)),
            "observed": np.array([[True, True, False, True, True]]),
            "heading": np.full((1, T), np.pi / 2, np.float32),
        },
        "background_holistic.npz": {"xyz": rng.normal(0, 2, (500, 3)), "rgb": np.zeros((500, 3), np.uint8)},
        "condition_anchor_rgb.mp4": rgb,
        "condition_holistic_rgb.mp4": rgb,
        "condition_anchor_depth.mkv": code,
        "condition_holistic_depth.mkv": code,
        "identity_00.png": np.full((40, 20, 4), 200, np.uint8),
        "meta.json": {
            "key": "0123456789ab-0000",
            "source": {"uri": "file:///videos/walk.mp4", "start_s": 0.0, "end_s": 0.25},
            "frames": T,
            "height": H,
            "width": W,
            "fps": 16,
            "camera_kind": "general",
            "verdict": "flagged",
            "reasons": ["depth_flicker 0.3 > 0.2"],
            "K_source": "prior",
            "subjects": [{"label": 1, "identity": "identity_00.png", "frame": 2}],
            "depth_range": {"condition_anchor_depth.mkv": [1, 10], "condition_holistic_depth.mkv": [1, 10]},
            "quality": dict.fromkeys(QUALITY, 0.5),
        },
    }


def test_draws_every_row_and_panel(sample):
    sheet = np.asarray(contact_sheet(sample, columns=3, cell=104))
    assert sheet.shape[1] > 3 * 104
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 100


def test_an_inference_request_has_no_clip_row(sample):
    full = contact_sheet(sample, columns=3, cell=104)
    for name in ("target.mp4", "masks.npz", "depth.npz"):
        del sample[name]
    assert contact_sheet(sample, columns=3, cell=104).height < full.height


def test_subject_tint_stays_inside_its_mask(sample):
    frame, labels = np.zeros((H, W, 3), np.uint8), sample["masks.npz"]["labels"][0]
    drawn = overlay_labels(frame, labels)
    assert (drawn[35, 47] == (0.45 * np.array(subject_colour(1))).astype(np.uint8)).all()
    assert (drawn[20, 47] == subject_colour(1)).all()
    assert (drawn[labels == 0] == 0).all()


def test_depth_colours_order_and_holes():
    near, far, hole = depth_colours(np.array([[1.0, 10.0, 0.0]]), 1, 10)[0].astype(int)
    assert near[0] > near[2]
    assert far[2] > far[0]
    assert (hole == 0).all()


def test_map_shows_the_subject_right_of_the_camera_when_it_is(sample):
    """The subject ends 1 m right of the camera path: its colour reaches further right than the camera's black."""
    image = np.asarray(top_down(sample, (400, 300))).astype(int)
    blue = np.abs(image - subject_colour(1)).sum(-1) < 60
    black = (image < 80).all(-1)
    black[250:] = False  # the scale bar
    assert np.nonzero(blue)[1].max() > np.nonzero(black)[1].max() + 10
