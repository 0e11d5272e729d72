"""Back-projection, depth cleaning and point sizes against exact answers."""

import numpy as np

from engine.geometry.camera import intrinsics, look_at
from engine.geometry.cloud import back_project, beside_edge, clean_depth, point_size

K = intrinsics(60.0, 60.0, 80, 60)


def test_back_projection_puts_a_wall_where_it_is():
    c2w = look_at(np.array([1.0, -0.5, 2.0]), np.array([1.0, -0.5, 9.0]), np.array([0, -1.0, 0]))
    keep = np.zeros((60, 80), bool)
    keep[10:20, 30:50] = True
    points = back_project(np.full((60, 80), 4.0), keep, K, c2w)
    assert points.shape == (200, 3)
    np.testing.assert_allclose(points[:, 2], 6.0, rtol=1e-6)
    np.testing.assert_allclose(points[0, :2], [1 + 4 * (30.5 - 40) / 60, -0.5 + 4 * (10.5 - 30) / 60], rtol=1e-5)


def test_size_is_the_width_of_a_pixel_at_the_point():
    xyz = np.array([[0, 0, 3.0], [1, 1, 6.0]], np.float32)
    found = point_size(xyz, np.zeros(2, int), K[None], np.eye(4)[None], grain=2.0)
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
