"""Tracks in a ray-cast room: where they are, what they cover, and that they keep off what moves."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from engine.geometry.camera import invert, project, transform, unproject
from engine.geometry.tracks import TrackOptions, sample_depth, track_points
from tests.engine.geometry.analytic_room import make_room, render, walk

SIZE = (120, 208)
K = np.array([[160.0, 0, 104], [0, 160, 60], [0, 0, 1]])
OPTIONS = TrackOptions(cells=[8, 14], per_cell=2, window=11, levels=3)


@pytest.fixture(scope="module")
def room():
    path = walk(9, 0)
    frames, depth = zip(*(render(make_room(0), c2w, K, *SIZE) for c2w in path), strict=True)
    return np.stack(frames), np.stack(depth), path


def test_tracks_follow_the_true_motion(room):
    frames, depth, path = room
    tracks = track_points(frames, None, OPTIONS)
    errors = []
    for t in range(len(path) - 1):
        both = np.flatnonzero(tracks.seen[:, t] & tracks.seen[:, t + 1])
        x, y = np.floor(tracks.uv[both, t]).astype(int).T
        world = transform(path[t], unproject(K, tracks.uv[both, t], depth[t, y, x]))
        at, _ = project(K, transform(invert(path[t + 1]), world))
        errors.append(np.linalg.norm(at - tracks.uv[both, t + 1], axis=1))
    assert np.median(np.concatenate(errors)) < 0.3  # the room is sampled without filtering, so its texture shimmers
    assert np.percentile(np.concatenate(errors), 90) < 1.5


def test_points_spread_over_the_image_and_are_replenished(room):
    frames, _, _ = room
    tracks = track_points(frames, None, OPTIONS)
    for t in (0, len(frames) - 1):
        u, v = tracks.uv[tracks.seen[:, t], t].T
        filled = np.histogram2d(v, u, bins=(4, 7), range=((0, 120), (0, 208)))[0] > 0
        assert filled.mean() > 0.8


def test_no_track_enters_a_moving_pixel(room):
    frames, _, _ = room
    static = np.ones(frames.shape[:3], bool)
    static[:, 30:90, 60:120] = False
    tracks = track_points(frames, static, OPTIONS)
    u, v = tracks.uv[tracks.seen].T
    assert not ((u > 61) & (u < 119) & (v > 31) & (v < 89)).any()


def test_depth_is_sampled_at_the_point(room):
    frames, depth, _ = room
    tracks = track_points(frames, None, OPTIONS)
    sampled = sample_depth(depth, None, tracks)
    t = 4
    index = np.flatnonzero(tracks.seen[:, t])
    x, y = np.floor(tracks.uv[index, t]).astype(int).T
    np.testing.assert_allclose(np.median(np.abs(sampled[index, t] / depth[t, y, x] - 1)), 0, atol=1e-3)
    assert (sampled[~tracks.seen] == 0).all()
    assert (sample_depth(np.zeros_like(depth), None, tracks) == 0).all()


def test_a_grey_wall_gives_no_tracks_and_no_error():
    assert len(track_points(np.full((5, 64, 64, 3), 128, np.uint8), None, OPTIONS).uv) == 0


def test_equal_frames_give_equal_bytes(room):
    frames, _, _ = room
    first, second = (track_points(frames, None, OPTIONS).uv for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_new_points_are_found_where_the_image_has_new_content():
    """A wide picture slides by a twelfth of the image a frame: after twelve frames no first point is left in sight."""
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (40, 160, 3), dtype=np.uint8), (640, 160), interpolation=cv2.INTER_CUBIC)
    frames = np.stack([picture[:, 16 * t : 16 * t + 192] for t in range(17)])
    tracks = track_points(frames, None, OPTIONS)
    first = tracks.seen[:, 0]
    assert first.sum() > 100
    assert not tracks.seen[first, 12:].any()
    assert tracks.seen.sum(0).min() > 0.7 * first.sum()
    both = tracks.uv[tracks.seen[:, 15] & tracks.seen[:, 16]]
    np.testing.assert_allclose(np.median(both[:, 16] - both[:, 15], 0), [-16, 0], atol=0.1)
    never = track_points(frames, None, replace(OPTIONS, replenish_every=100))
    assert not never.seen[:, 12:].any()
