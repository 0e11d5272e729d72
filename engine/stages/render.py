"""Condition videos: a background cloud and the moving subjects, seen along the camera path."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from engine.geometry.camera import invert, transform
from engine.geometry.ellipsoid import SIGMAS, draw_ellipsoid
from engine.geometry.splat import close_gaps, cpu_threads, splat
from engine.options import option
from engine.types import Camera, Cloud, Rendering, Subjects
from shards.schema import HOLE


@dataclass
class RenderOptions:
    splat: str = option(
        "surface",
        "footprint of a background point: surface = disc of radius f * size / z, fixed = disc of fixed_radius, "
        "point = one pixel",
        choices=("surface", "fixed", "point"),
    )
    cover: float = option(
        1.0, "surface disc radius in point sizes; 0.71 just closes a regular grid, 1 covers a jittered one"
    )
    close: int = option(3, "pixels; gaps between splats up to this wide are closed, wider holes are left; 0 = off")
    max_radius: float = option(8.0, "largest surface disc, pixels")
    fixed_radius: float = option(0.0025, "fixed disc radius as a share of the height: PyTorch3D's common 0.005 NDC")
    hole: str = option("black", "colour where nothing is", choices=("black", "white"))
    sigmas: float = option(SIGMAS, "standard deviations at a subject's surface")
    soft: bool = option(False, "blend subjects by their projected Gaussian density instead of drawing them solid")
    threads: int = option(0, "frames rendered side by side; 0 = one per CPU of the process")


def render_condition(
    size: tuple[int, int], camera: Camera, subjects: Subjects, cloud: Cloud, options: RenderOptions
) -> Rendering:
    """Render every frame of the camera path at size = (height, width): nearest of background and subjects."""
    height, width = size
    T = len(camera.c2w)
    rgb = np.empty((T, height, width, 3), np.uint8)
    depth = np.empty((T, height, width), np.float32)
    ids = np.empty((T, height, width), np.uint8)
    hole = (0, 0, 0) if options.hole == "black" else (255, 255, 255)
    if options.splat == "surface" and cloud.size is None:
        raise ValueError(
            "splat=surface needs Cloud.size (metres per point); compute it with engine.geometry.cloud.point_size "
            "or render with splat=fixed"
        )
    surface = options.splat == "surface"
    sizes = cloud.size * np.float32(options.cover) if surface else None
    radius = options.fixed_radius * height if options.splat == "fixed" else 0.0

    def frame(t: int) -> None:
        w2c = invert(camera.c2w[t].astype(np.float64))
        seen = splat(cloud.xyz, camera.K[t], w2c, height, width, sizes, radius, options.max_radius)
        seen = close_gaps(seen, options.close)
        rgb[t] = seen.colour(cloud.rgb, hole)
        depth[t] = seen.depth
        ids[t] = np.where(seen.ids < 0, HOLE, 0)
        # far to near, so that soft subjects blend over what is behind them
        z = transform(w2c, subjects.mean[:, t].astype(np.float64))[:, 2]
        for n in np.argsort(-z, kind="stable"):
            draw_ellipsoid(
                rgb[t], depth[t], ids[t], subjects.mean[n, t], subjects.cov[n, t], int(n) + 1,
                camera.K[t], camera.c2w[t], options.sigmas, options.soft,
            )  # fmt: skip

    with ThreadPoolExecutor(options.threads or cpu_threads()) as pool:
        list(pool.map(frame, range(T)))
    return Rendering(rgb, depth, ids)
