"""Renderer speed beside Open3D's `project_to_rgbd_image`, same cloud, same machine, same minute.

    python tests/bench/bench_render.py [--points 2000000] [--rounds 9]

Prints a table of ratios (Open3D's 1-pixel time / ours, so more is better) and exits 1 when a goal is missed:
points at least 2x, surface discs at least 1x, on a cloud in image order and on a shuffled one. Each round times all
rows one after the other and the ratio is the median over rounds, so a busy machine slows both sides alike.
"""

import argparse
import sys
import time

import numpy as np

from engine.geometry.camera import intrinsics, look_at, pixel_grid, rays, transform
from engine.geometry.splat import cpu_threads, splat

HEIGHT, WIDTH, FOCAL = 480, 832, 720.0
GOALS = {"points": 2.0, "surface discs": 1.0}


def room_cloud(points: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(xyz, rgb, size): the walls of a 6 x 3 x 11 m room back-projected from a walk, 1 % depth noise."""
    K = intrinsics(FOCAL, FOCAL, WIDTH, HEIGHT)
    low, high = np.array([-3.0, -1.5, -4.0]), np.array([3.0, 1.5, 7.0])
    views = int(np.ceil(points / (HEIGHT * WIDTH)))
    xyz, size = [], []
    for a in np.linspace(0, 1, views):
        c2w = look_at(np.array([a - 0.5, 0, a]), np.array([0.5 * a, 0, 4.0]), np.array([0, -1.0, 0]))
        direction = rays(K, pixel_grid(HEIGHT, WIDTH).astype(float)) @ c2w[:3, :3].T
        origin = c2w[:3, 3]
        z = (np.where(direction > 0, high - origin, low - origin) / direction).min(-1)
        z *= np.exp(rng.normal(0, 0.01, z.shape))
        xyz.append(transform(c2w, rays(K, pixel_grid(HEIGHT, WIDTH).astype(float)) * z[..., None]).reshape(-1, 3))
        size.append(z.ravel() / FOCAL)
    pick = np.sort(rng.permutation(views * HEIGHT * WIDTH)[:points])
    xyz, size = np.concatenate(xyz)[pick].astype(np.float32), np.concatenate(size)[pick].astype(np.float32)
    return xyz, rng.integers(0, 256, (points, 3), dtype=np.uint8), size


def compare(xyz: np.ndarray, rgb: np.ndarray, size: np.ndarray, rounds: int) -> dict[str, np.ndarray]:
    """Seconds [rounds] of Open3D ("peer") and of each of our footprints."""
    import open3d as o3d

    K, threads = intrinsics(FOCAL, FOCAL, WIDTH, HEIGHT), cpu_threads()
    peer = o3d.t.geometry.PointCloud(o3d.core.Tensor(xyz))
    peer.point.colors = o3d.core.Tensor(rgb)
    intrinsic, extrinsic = o3d.core.Tensor(K), o3d.core.Tensor(np.eye(4))

    def ours(**footprint):
        return splat(xyz, K, np.eye(4), HEIGHT, WIDTH, threads=threads, **footprint).colour(rgb)

    runs = {
        "peer": lambda: peer.project_to_rgbd_image(WIDTH, HEIGHT, intrinsic, extrinsic, 1.0, 100.0),
        "points": ours,
        "surface discs": lambda: ours(size=size),
        "fixed 0.0025 H": lambda: ours(radius=0.0025 * HEIGHT),
    }
    for run in runs.values():
        run()  # compile and warm
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(taken) for name, taken in seconds.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    cloud = room_cloud(arguments.points, rng)
    order = rng.permutation(arguments.points)
    print(f"{arguments.points} points to {HEIGHT}x{WIDTH}, {cpu_threads()} threads, {arguments.rounds} rounds")
    print(f"{'cloud':12s} {'footprint':16s} {'ms':>8s} {'Open3D 1-px ms':>15s} {'ratio':>7s}  goal")
    missed = False
    for cloud_name, arrays in (("image order", cloud), ("shuffled", tuple(x[order] for x in cloud))):
        seconds = compare(*arrays, arguments.rounds)
        base = seconds.pop("peer")
        for name, taken in seconds.items():
            ratio, goal = float(np.median(base / taken)), GOALS.get(name)
            met = goal is None or ratio >= goal
            missed |= not met
            told = "-" if goal is None else f"{goal:.1f} {'ok' if met else 'MISSED'}"
            times = f"{1e3 * np.median(taken):8.1f} {1e3 * np.median(base):15.1f}"
            print(f"{cloud_name:12s} {name:16s} {times} {ratio:7.2f}  {told}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
