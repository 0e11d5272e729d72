"""The z-buffer against a brute-force float64 oracle, and the properties that make a render reproducible."""

import numpy as np
import pytest

from engine.geometry.camera import intrinsics, invert, look_at
from engine.geometry.splat import NEAR, RIM, splat

HEIGHT, WIDTH = 48, 80
K = intrinsics(70.0, 66.0, WIDTH, HEIGHT)
W2C = invert(look_at(np.array([0.3, -0.2, -1.0]), np.array([0.1, 0.0, 3.0]), np.array([0, -1.0, 0.1])))


def random_cloud(points: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    xyz = rng.uniform([-3, -2, -2], [3, 2, 6], (points, 3)).astype(np.float32)  # part of it is behind the camera
    return xyz, rng.uniform(0.005, 0.2, points).astype(np.float32), rng.integers(0, 256, (points, 3), dtype=np.uint8)


def oracle(xyz, size=None, radius=0.0, max_radius=8.0):
    """ids and depth by a loop over the pixels: for each, every point that covers it, the smallest key wins."""
    p = xyz.astype(np.float64) @ W2C[:3, :3].T + W2C[:3, 3]
    z = p[:, 2]
    ok = z >= NEAR
    safe = np.where(ok, z, 1)
    u = K[0, 0] * p[:, 0] / safe + K[0, 2]
    v = K[1, 1] * p[:, 1] / safe + K[1, 2]
    reach = (
        np.minimum(K[0, 0] * size.astype(np.float64) / safe, max_radius)
        if size is not None
        else np.full(len(z), radius)
    )
    bend = RIM * size.astype(np.float64) if size is not None else np.zeros(len(z))
    ids, depth = np.full((HEIGHT, WIDTH), -1), np.zeros((HEIGHT, WIDTH))
    for y in range(HEIGHT):
        for x in range(WIDTH):
            d2 = (x + 0.5 - u) ** 2 + (y + 0.5 - v) ** 2
            own = (np.floor(u) == x) & (np.floor(v) == y)
            covers = ok & (own | ((reach > 0) & (d2 <= reach**2)))
            if covers.any():
                key = z + np.minimum(bend * d2 / np.maximum(reach**2, 1e-12), bend)
                key = np.where(covers, key, np.inf).astype(np.float32)
                ids[y, x] = np.argmin(key)  # first index among equals
                depth[y, x] = z[ids[y, x]]
    return ids, depth


@pytest.mark.parametrize("mode", ["points", "fixed", "surface"])
def test_agrees_with_float64_oracle_at_every_pixel(mode):
    xyz, size, rgb = random_cloud(6000)
    given = {"points": {}, "fixed": {"radius": 1.7}, "surface": {"size": size}}[mode]
    ids, depth = oracle(xyz, **given)
    got = splat(xyz, K, W2C, HEIGHT, WIDTH, **given)
    np.testing.assert_array_equal(got.ids, ids)
    np.testing.assert_allclose(got.depth, depth, rtol=1e-6)
    expected = np.where(ids[..., None] < 0, 7, rgb[ids])
    np.testing.assert_array_equal(got.colour(rgb, (7, 7, 7)), expected)
    assert (ids < 0).any() or mode != "points"


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("mode", ["points", "fixed", "surface"])
def test_threads_give_equal_bytes(mode, threads):
    xyz, size, _ = random_cloud(20000, 1)
    given = {"points": {}, "fixed": {"radius": 1.2}, "surface": {"size": size}}[mode]
    one, many = (splat(xyz, K, W2C, HEIGHT, WIDTH, threads=n, **given) for n in (1, threads))
    assert one.ids.tobytes() == many.ids.tobytes()
    assert one.depth.tobytes() == many.depth.tobytes()


def test_point_order_does_not_change_the_picture():
    xyz, size, rgb = random_cloud(20000, 2)
    order = np.random.default_rng(3).permutation(len(xyz))
    a = splat(xyz, K, W2C, HEIGHT, WIDTH, size)
    b = splat(xyz[order], K, W2C, HEIGHT, WIDTH, size[order])
    np.testing.assert_array_equal(a.colour(rgb), b.colour(rgb[order]))


def test_equal_depths_go_to_the_lower_index():
    xyz = np.array([[0, 0, 2], [0.001, 0, 2], [0, 0, 3]], np.float32)
    got = splat(xyz[[1, 0, 2]], K, np.eye(4), HEIGHT, WIDTH)
    assert got.ids.max() == 0


def test_a_grid_seen_from_nearer_and_aslant_has_neither_holes_nor_shift():
    """Back-project a slanted plane at every pixel, move the camera: each covered pixel shows the point whose texture
    is the plane's at that pixel (within the point spacing), and nothing inside the plane is a hole."""
    x, y = np.meshgrid(np.arange(-2, 2, 0.02), np.arange(-2, 2, 0.02))
    xyz = np.stack([x, y, 4 + 1.5 * x], -1).reshape(-1, 3).astype(np.float32)  # 56 degrees off the image plane
    size = np.full(len(xyz), 0.02 * np.sqrt(1 + 1.5**2), np.float32)  # spacing along the slope
    focal = 200.0  # spacing of 1 px at 4 m, 2 px at 2 m
    camera = intrinsics(focal, focal, WIDTH, HEIGHT)
    got = splat(xyz, camera, np.eye(4), HEIGHT, WIDTH, size)
    assert (got.ids >= 0).all()
    uv = xyz[:, :2] * focal / xyz[:, 2:] + [WIDTH / 2, HEIGHT / 2]
    pixel = np.stack(np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5), -1)
    offset = uv[got.ids] - pixel
    spacing = focal * 0.02 / got.depth
    assert (np.abs(offset).max(-1) <= spacing + 0.01).all()
    flat = uv[splat(xyz, camera, np.eye(4), HEIGHT, WIDTH, radius=2.0).ids] - pixel
    assert np.abs(offset.mean((0, 1))).max() < 0.25 < 0.8 < np.abs(flat.mean((0, 1))).max()


def test_empty_cloud_is_all_hole():
    got = splat(np.zeros((0, 3), np.float32), K, W2C, HEIGHT, WIDTH, np.zeros(0, np.float32), threads=2)
    assert (got.ids == -1).all()
    assert (got.depth == 0).all()


def test_refuses_wrong_shapes():
    with pytest.raises(ValueError, match=r"\[P,3\]"):
        splat(np.zeros((4, 2), np.float32), K, W2C, HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="3 entries for 4"):
        splat(np.zeros((4, 3), np.float32), K, W2C, HEIGHT, WIDTH, np.zeros(3))
