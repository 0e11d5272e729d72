"""Keyframes: as far apart as allowed while their tracks live, closer where they die."""

from itertools import pairwise

import numpy as np

from engine.geometry.keyframes import observe, shared_keyframes


def test_long_tracks_give_the_widest_steps_and_both_ends():
    assert shared_keyframes(np.ones((50, 18), bool), 4).tolist() == [0, 4, 8, 12, 16, 17]


def test_tracks_that_die_fast_bring_keyframes_together():
    """50 points are born in every frame; those of frames 8..15 live two frames, the others twelve."""
    births = np.arange(24)
    life = np.where((births >= 8) & (births < 16), 2, 12)
    seen = np.concatenate(
        [np.tile((births >= b) & (births < b + n), (50, 1)) for b, n in zip(births, life, strict=True)]
    )
    seen &= ~((births >= 8) & (births < 16)) | (np.repeat(births, 50)[:, None] >= 8)  # blur ends what came before
    keys = shared_keyframes(seen, 4)
    assert keys[0] == 0
    assert keys[-1] == 23
    steps = np.diff(keys)
    assert steps.max() == 4
    assert steps[(keys[:-1] >= 8) & (keys[1:] <= 15)].max() == 1
    for a, b in pairwise(keys):
        assert b == a + 1 or seen[seen[:, a]][:, b].mean() >= 0.5


def test_a_frame_that_nothing_reaches_is_still_passed():
    seen = np.ones((20, 9), bool)
    seen[:, 5:] = False
    assert shared_keyframes(seen, 4)[-1] == 8


def test_observations_are_numbered_by_their_place():
    uv = np.full((3, 6, 2), np.nan)
    uv[0, [0, 2, 4]], uv[1, [2]], uv[2, [2, 4]] = 1.0, 2.0, 3.0
    found, rows = observe(uv, np.full((3, 6), 7.0), np.array([0, 2, 4]), 2)
    assert rows.tolist() == [0, 2]
    assert sorted(zip(found.frame.tolist(), found.point.tolist(), strict=True)) == [
        (0, 0),
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
    ]
    assert set(found.uv[found.point == 1].ravel()) == {3.0}
    assert (found.depth == 7).all()
