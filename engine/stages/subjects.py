"""From masks, depth and poses to each subject's moving 3D Gaussian."""

from dataclasses import dataclass

import numpy as np

from engine.geometry.camera import invert, project, transform, unproject
from engine.geometry.gaussian import (
    RIDGE,
    robust_gaussian,
    sample_gaussian,
    smooth_covariance,
    smooth_path,
    trusted_depth,
)
from engine.geometry.heading import headings
from engine.options import option
from engine.types import Camera, Clip, Scene, Subjects


@dataclass
class SubjectOptions:
    robust: bool = option(True, "False = the plain mean and covariance of every masked pixel, not smoothed in time")
    erode: int = option(
        5, "pixels taken off the mask's rim before depth is trusted: masks are about 2 too large, depth bleeds 2 more"
    )
    min_pixels: int = option(24, "frames with fewer trusted pixels are bridged; a person 30 m away covers about 24x9")
    depth_sigma: float = option(
        0.03, "relative error of a subject's depth in one frame: smooth error of depth networks"
    )
    side_sigma: float = option(
        0.03, "error of the centre across the line of sight in metres: limbs swing, masks breathe"
    )
    agility: float = option(1.0, "density of the acceleration, m^2/s^3: a walker's speed changes by about 1 m/s in 1 s")
    memory: float = option(1.5, "seconds after which an unseen subject has slowed down to a third")
    shape_sigma: float = option(3.0, "frames over which the covariance is averaged")
    heading_start: float = option(0.5, "metres per second above which a subject counts as travelling")
    heading_stop: float = option(0.3, "metres per second below which it counts as standing; a sway reaches 0.2")
    heading_sigma: float = option(2.0, "frames over which the heading is averaged")


def unroll_subjects(clip: Clip, scene: Scene, camera: Camera, options: SubjectOptions) -> Subjects:
    """The subjects' states per frame. Row n belongs to label n + 1; N = 0 gives arrays of shape (0, T, ...).

    Depth is scene.depth * camera.scale_t. Raises ValueError for a subject without depth in every frame.
    """
    N, T = len(scene.tracks.subjects), len(clip.frames)
    mean, cov = np.zeros((N, T, 3)), np.tile(RIDGE * np.eye(3), (N, T, 1, 1))
    heading, source = np.full((N, T), np.nan), np.zeros((N, T), np.uint8)
    points, observed = np.zeros((N, T), np.int32), np.zeros((N, T), bool)
    for n, track in enumerate(scene.tracks.subjects):
        fits = [_fit(scene, camera, track.label, t, options) for t in range(T)]
        points[n] = [0 if fit is None else fit[2] for fit in fits]
        observed[n] = points[n] >= options.min_pixels
        if not observed[n].any():
            observed[n] = points[n] > 0
        if not observed[n].any():
            raise ValueError(
                f"{clip.key}: subject {track.label} ({track.category}) has depth in none of its "
                f"{int((scene.tracks.labels == track.label).any((1, 2)).sum())} masked frames; drop it from the "
                "tracks or give depth under its mask"
            )
        for t in np.flatnonzero(observed[n]):
            mean[n, t], cov[n, t] = fits[t][:2]
        noise = _noise(mean[n], cov[n], observed[n], scene, track.label, camera, options)
        motion = smooth_path(mean[n], noise, observed[n], clip.fps, options.agility, options.memory)
        shape = smooth_covariance(cov[n], observed[n], points[n].astype(float), options.shape_sigma)
        change = np.ones(T, bool) if options.robust else ~observed[n]
        mean[n, change], cov[n, change] = motion.mean[change], shape[change]
        facing = None if track.facing is None else np.einsum("tij,tj->ti", camera.c2w[:, :3, :3], track.facing)
        heading[n], source[n] = headings(
            motion.velocity, facing, clip.fps, options.heading_start, options.heading_stop, options.heading_sigma
        )
    w2c = invert(camera.c2w.astype(np.float64))
    mean_camera, uv = np.zeros((N, T, 3)), np.zeros((N, T, 2))
    for t in range(T):
        mean_camera[:, t] = transform(w2c[t], mean[:, t])
        uv[:, t] = project(camera.K[t].astype(np.float64), mean_camera[:, t])[0]
    return Subjects(
        mean=mean.astype(np.float32),
        cov=cov.astype(np.float32),
        observed=observed,
        mean_camera=mean_camera.astype(np.float32),
        uv=uv.astype(np.float32),
        heading=heading.astype(np.float32),
        heading_source=source,
        points=points,
    )


def _fit(scene: Scene, camera: Camera, label: int, t: int, options: SubjectOptions):
    """World mean, covariance and number of trusted pixels of one subject in one frame; None where it is not seen."""
    mask = scene.tracks.labels[t] == label
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    mask, depth = mask[window], scene.depth[t][window].astype(np.float64) * float(camera.scale_t[t])
    K, c2w = camera.K[t].astype(np.float64), camera.c2w[t].astype(np.float64)
    if not options.robust:
        y, x = np.nonzero(mask & (depth > 0))
        if not len(y):
            return None
        uv = np.stack([x + columns[0] + 0.5, y + rows[0] + 0.5], -1)
        return *sample_gaussian(transform(c2w, unproject(K, uv, depth[y, x]))), len(y)
    trusted = trusted_depth(mask, depth, K[0, 0], options.erode)
    if not trusted.any():
        return None
    mean, cov = robust_gaussian(mask, depth, trusted, K, (int(columns[0]), int(rows[0])))
    R = c2w[:3, :3]
    return transform(c2w, mean), R @ cov @ R.T, int(trusted.sum())


def _noise(
    mean: np.ndarray,
    cov: np.ndarray,
    observed: np.ndarray,
    scene: Scene,
    label: int,
    camera: Camera,
    options: SubjectOptions,
) -> np.ndarray:
    """Covariance [T,3,3] of each frame's centre: long along the line of sight, short across it, and as uncertain as
    the hidden share of the body where less of it is seen than usual (cut off by the border or by something)."""
    centre = camera.c2w[:, :3, 3].astype(np.float64)
    sight = mean - centre
    distance = np.maximum(np.linalg.norm(sight, axis=-1), 1e-3)
    along = sight / distance[:, None]
    pixels = (scene.tracks.labels == label).sum((1, 2))
    area = pixels * (distance / camera.K[:, 0, 0]) ** 2
    usual = np.percentile(area[observed], 75)
    hidden = 1 - np.clip(area / usual, 0, 1)
    hidden = np.maximum(hidden - 0.2, 0)  # a walking silhouette breathes by about 20 %
    extent = np.sqrt(np.linalg.eigvalsh(cov)[:, -1])
    side = (options.side_sigma + hidden * extent) ** 2
    depth = (options.depth_sigma * distance) ** 2 + side
    outer = along[:, :, None] * along[:, None]
    return side[:, None, None] * (np.eye(3) - outer) + depth[:, None, None] * outer
