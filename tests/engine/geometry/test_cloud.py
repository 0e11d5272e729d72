"""Back-projection, depth cleaning and point sizes against exact answers."""

import numpy as np
import pytest

from engine.geometry.camera import intrinsics, look_at
from engine.geometry.cloud import Views, back_project, beside_edge, clean_depth, fuse, point_size, review

LENS = intrinsics(60.0, 60.0, 80, 60)


def test_back_projection_puts_a_wall_where_it_is():
    c2w = look_at(np.array([1.0, -0.5, 2.0]), np.array([1.0, -0.5, 9.0]), np.array([0, -1.0, 0]))
    keep = np.zeros((60, 80), bool)
    keep[10:20, 30:50] = True
    points = back_project(np.full((60, 80), 4.0), keep, LENS, c2w)
    assert points.shape == (200, 3)
    np.testing.assert_allclose(points[:, 2], 6.0, rtol=1e-6)
    np.testing.assert_allclose(points[0, :2], [1 + 4 * (30.5 - 40) / 60, -0.5 + 4 * (10.5 - 30) / 60], rtol=1e-5)


def test_size_is_the_width_of_a_pixel_at_the_point():
    xyz = np.array([[0, 0, 3.0], [1, 1, 6.0]], np.float32)
    found = point_size(xyz, np.zeros(2, int), LENS[None], np.eye(4)[None], grain=2.0)
    np.testing.assert_allclose(found, [2 * 3 / 60, 2 * 6 / 60], rtol=1e-6)


def test_flying_pixels_go_and_the_two_sides_stay():
    depth = np.full((40, 60), 6.0, np.float32)
    depth[:, :30] = 2.0
    depth[:, 29], depth[:, 30] = 3.0, 4.5  # blended across the edge
    side = beside_edge(depth, 3, 0.04)
    assert not side[:, 29:31].any()
    assert side[:, :29].all()
    assert side[:, 31:].all()
    lone = np.full((40, 60), 6.0, np.float32)
    lone[20, 20] = 4.0
    clean = clean_depth(lone, 5, 0.1)
    assert clean[20, 20] == 0
    assert (np.delete(clean.ravel(), 20 * 60 + 20) == 6).all()
    np.testing.assert_array_equal(clean_depth(lone, 0, 0.1), lone)


@pytest.mark.parametrize(("z", "people", "kept"), [(2.0, True, False), (2.0, False, True), (4.5, True, True)])
def test_a_point_before_a_person_who_was_seen_is_seen_through(z, people, kept):
    """A surface that one frame saw at z, where a person 5 m away is seen in two others; at 4.5 m it may be the person's
    own depth that is wrong."""
    K, c2w = np.repeat(intrinsics(40, 40, 32, 24)[None], 3, 0), np.repeat(np.eye(4)[None], 3, 0)
    depth = np.full((3, 24, 32), 5.0, np.float32)
    depth[0] = z
    first = np.zeros(depth.shape, bool)
    first[0] = True
    none = np.zeros(depth.shape, bool)
    views = Views(depth, np.ones_like(depth), first, ~first & people, none, K, c2w, np.ones(3))
    fused, _, tolerance = fuse(views, np.arange(1), 2000)
    keep, _ = review(fused, views, np.zeros((3, 24, 32, 3), np.uint8), np.arange(3), tolerance)
    assert keep.all() if kept else not keep.any()
