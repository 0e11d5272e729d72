"""Camera motion without any depth: tracks in, poses up to scale, focal length and sparse points out.

A short window of keyframes is bootstrapped twice, from points on a sphere and a camera at rest (Yu & Gallup 2014, "3D
reconstruction from accidental motion", which also holds under pure forward motion) and from the five-point essential
matrix (Nister 2004); the better of the two after bundle adjustment grows keyframe by keyframe.
"""

from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from engine.geometry.bundle import Bundle, Observations, Prior, Solution, adjust
from engine.geometry.camera import first_frame_world, interpolate_poses, invert, pose, rays, transform
from engine.geometry.classify import Motion, MotionOptions, classify_motion, fit_turning
from engine.geometry.keyframes import build_bundle, first_seen, keyframes, observe
from engine.geometry.odometry import refine_poses, solve_pnp
from engine.geometry.reprojection import median_of, reprojection_errors, share_within, turning_errors
from engine.geometry.tracks import PointTracks
from engine.types import CameraKind


@dataclass(frozen=True)
class Reconstruction:
    """A monocular reconstruction, up to scale: the median depth of the points seen in frame 0 is 1.

    c2w          float64 [T,4,4] camera-to-world, frame 0 is the identity
    K            float64 [T,3,3] pixels, with the refined focal length (per frame only for a zoom)
    points       float64 [M,3] world points, one row per input track; NaN where a track was not reconstructed
    log_sigma    float64 [M] standard deviation of the log depth of each point (inf where not reconstructed)
    kind         "static", "rotation", "zoom", "general" or "failed"; only "general" has translation and points
    inliers      float64 [T] share of each frame's tracks within 2 px of their projection
    reprojection float64 [T] median reprojection error, pixels
    quality      focal_log_sigma, parallax_px (what rotation does not explain), reconstructed (share of the tracks)
    """

    c2w: np.ndarray
    K: np.ndarray
    points: np.ndarray
    log_sigma: np.ndarray
    kind: CameraKind
    inliers: np.ndarray
    reprojection: np.ndarray
    quality: dict[str, float] = field(default_factory=dict)


def solve_monocular(
    tracks: PointTracks, K: np.ndarray, focal_sigma: float = 0.15, keyframe_every: int = 4
) -> Reconstruction:
    """Poses, focal length and sparse points from tracks alone.

    tracks          static points followed over the clip (`engine.geometry.tracks.track_points`)
    K               float64 [3,3] pixels: the prior of the intrinsics; only the focal length is refined
    focal_sigma     standard deviation of the log of the prior's focal length; 0 keeps it
    keyframe_every  frames between keyframes
    A camera without parallax comes back as "static", "rotation" or "zoom"; one that no hypothesis explains as "failed"
    (identity poses). Nothing is raised for hard footage.
    """
    uv = tracks.uv.astype(np.float64)
    motion = classify_motion(tracks, K, round(2 * K[0, 2]), MotionOptions())
    if motion.kind != "general":
        return _turning(uv, K, motion)
    keys = keyframes(uv.shape[1], keyframe_every)
    grown = _Map(uv, K, keys, focal_sigma).grow()
    if grown is None:
        return _turning(uv, K, replace(motion, kind="failed", R=np.repeat(np.eye(3)[None], uv.shape[1], 0)))
    solution, chosen, points_of = grown
    return _finish(uv, K, keys[:chosen], solution, points_of, motion)


class _Map:
    """Incremental structure from motion over keyframes."""

    def __init__(self, uv: np.ndarray, K: np.ndarray, keys: np.ndarray, focal_sigma: float):
        self.uv, self.K, self.keys, self.focal_sigma = uv, K.astype(np.float64), keys, focal_sigma

    def grow(self) -> tuple[Solution, int, np.ndarray] | None:
        """(solution over the first `n` keyframes, n, rows of its points); None when no start was found."""
        size = self._window()
        starts = [s for s in (self._rest(size), self._essential(size)) if s is not None]
        if not starts:
            return None
        solution, rows = min(starts, key=lambda s: s[0].cost)
        for n in range(size + 1, len(self.keys) + 1):
            extended = self._extend(solution.bundle, rows, n)
            if extended is None:
                break
            solution, rows = self._adjust(*extended, n, 6, free_focal=n >= 8)
        n = len(solution.bundle.c2w)
        observations, _ = observe(self.uv, None, self.keys[:n], 3)
        solution, rows = self._adjust(solution.bundle, observations, rows, n, 60, free_focal=True)
        return solution, n, rows

    def _window(self) -> int:
        """Keyframes of the bootstrap: until the median parallax beyond rotation reaches 3 % of the focal length."""
        for size in range(3, len(self.keys) + 1):
            both = np.isfinite(self.uv[:, self.keys[:size], 0]).all(1)
            if both.sum() < 40:
                return max(3, size - 1)
            _, _, parallax = fit_turning(self.uv[both][:, self.keys[:size]], self.K, zoom=False, iterations=4)
            if parallax > 0.03 * self.K[0, 0] or size == 10:
                return size
        return len(self.keys)

    def _adjust(self, bundle: Bundle, observations: Observations, rows, n: int, steps: int, free_focal: bool):
        centre = float(np.median(bundle.log_depth))
        prior = Prior(
            times=self.keys[:n].astype(np.float64),
            # 3 % of the median depth per frame squared: only a camera that sees nothing is held by it
            acceleration_sigma=np.full(n, 0.03 * np.exp(centre)),
            focal_sigma=self.focal_sigma if free_focal else 0.0,
            log_depth_sigma=3.0,
            log_depth=centre,
        )
        return adjust(bundle, observations, self.K, prior, iterations=steps, tolerance=1e-5), rows

    def _rest(self, n: int) -> tuple[Solution, np.ndarray]:
        """From a camera that only turns, and all points at depth 1."""
        observations, rows = observe(self.uv, None, self.keys[:n], 3)
        first = first_seen(observations, len(rows))
        R, _, _ = fit_turning(self.uv[rows][:, self.keys[:n]], self.K, zoom=False, iterations=4)
        bundle = Bundle(
            c2w=pose(R, np.zeros((n, 3))),
            log_scale=np.zeros(n),
            anchor=observations.frame[first],
            ray=rays(self.K, observations.uv[first])[:, :2],
            log_depth=np.zeros(len(rows)),
        )
        return self._adjust(bundle, observations, rows, n, 40, free_focal=False)

    def _essential(self, n: int) -> tuple[Solution, np.ndarray] | None:
        """From the relative pose of the first and the last keyframe of the window."""
        a, b = self.keys[0], self.keys[n - 1]
        both = np.flatnonzero(np.isfinite(self.uv[:, a, 0]) & np.isfinite(self.uv[:, b, 0]))
        if len(both) < 20:
            return None
        first, last = self.uv[both, a], self.uv[both, b]
        cv2.setRNGSeed(0)
        E, inlier = cv2.findEssentialMat(first, last, self.K, method=cv2.RANSAC, prob=0.9999, threshold=1.0)
        if E is None or E.shape != (3, 3):
            return None
        _, R, t, _, X = cv2.recoverPose(E, first, last, self.K, distanceThresh=200.0, mask=inlier.copy())[:5]
        X = (X[:3] / X[3]).T
        good = (inlier[:, 0] > 0) & (X[:, 2] > 0) & (X[:, 2] < 200)
        if good.sum() < 20:
            return None
        scale = 1 / np.median(X[good, 2])
        points = np.full((len(self.uv), 3), np.nan)
        points[both[good]] = X[good] * scale
        ends = np.stack([np.eye(4), invert(pose(R, t[:, 0] * scale))])
        c2w = interpolate_poses(self.keys[:n].astype(float), np.array([a, b], float), ends)
        c2w[1:-1] = refine_poses(self.uv[:, self.keys[:n]], points, c2w, self.K, np.arange(1, n - 1))[1:-1]
        observations, rows = observe(self.uv, None, self.keys[:n], 3)
        return self._adjust(
            build_bundle(c2w, points[rows], observations, self.K), observations, rows, n, 40, free_focal=False
        )

    def _extend(self, bundle: Bundle, rows: np.ndarray, n: int) -> tuple[Bundle, Observations, np.ndarray] | None:
        """The bundle with keyframe n - 1 and the tracks that now are seen in three keyframes, or None when lost."""
        points = np.full((len(self.uv), 3), np.nan)
        points[rows] = bundle.world_points()
        t = self.keys[n - 1]
        K = self.K.copy()
        K[[0, 1], [0, 1]] *= np.exp(bundle.log_focal)
        known = np.flatnonzero(np.isfinite(self.uv[:, t, 0]) & np.isfinite(points[:, 0]))
        found = solve_pnp(points[known], self.uv[known, t], K, bundle.c2w[-1], 4.0, 10)
        if found is None:
            found = solve_pnp(points[known], self.uv[known, t], K, bundle.c2w[-1], 12.0, 10)
        if found is None:
            return None
        c2w = np.concatenate([bundle.c2w, found[0][None]])
        observations, now = observe(self.uv, None, self.keys[:n], 3)
        return build_bundle(c2w, points[now], observations, self.K, bundle.log_focal), observations, now


def _turning(uv: np.ndarray, K: np.ndarray, motion: Motion) -> Reconstruction:
    """The reconstruction of a camera without parallax: rotations, focal factors, no points."""
    count = uv.shape[1]
    c2w = pose(motion.R, np.zeros((count, 3)))
    K_t = np.repeat(K.astype(np.float64)[None], count, 0)
    K_t[:, [0, 1], [0, 1]] *= motion.focal[:, None]
    errors = turning_errors(uv, c2w[:, :3, :3], K_t)
    return Reconstruction(
        c2w=c2w,
        K=K_t,
        points=np.full((len(uv), 3), np.nan),
        log_sigma=np.full(len(uv), np.inf),
        kind=motion.kind,
        inliers=share_within(errors, 2.0),
        reprojection=median_of(errors),
        quality={"focal_log_sigma": float("inf"), "parallax_px": motion.rotation, "reconstructed": 0.0},
    )


def _finish(uv, K, keys, solution: Solution, rows, motion: Motion) -> Reconstruction:
    """All frames from the keyframes, the scale normalised, everything measured."""
    bundle = solution.bundle
    K = K.astype(np.float64).copy()
    K[[0, 1], [0, 1]] *= np.exp(bundle.log_focal)
    points = np.full((len(uv), 3), np.nan)
    points[rows] = bundle.world_points()
    log_sigma = np.full(len(uv), np.inf)
    log_sigma[rows] = solution.log_depth_sigma
    count = uv.shape[1]
    c2w = interpolate_poses(np.arange(count, dtype=float), keys.astype(float), bundle.c2w)
    c2w = refine_poses(uv, points, c2w, K, np.setdiff1d(np.arange(count), keys))
    errors = reprojection_errors(uv, points, c2w, K)
    wild = np.nanmedian(np.minimum(errors[rows], 1e3), axis=1) > 4
    points[rows[wild]], log_sigma[rows[wild]] = np.nan, np.inf
    seen = np.isfinite(uv[:, 0, 0]) & np.isfinite(points[:, 0])
    depth = transform(invert(c2w[0]), points[seen])[:, 2] if seen.any() else np.exp(bundle.log_depth)
    unit = float(np.median(depth[depth > 0]))
    world = invert(c2w[0])
    c2w = first_frame_world(c2w)
    c2w[:, :3, 3] /= unit
    inliers = share_within(errors, 2.0)
    lost = keys[-1] < count - 1
    return Reconstruction(
        c2w=c2w,
        K=np.repeat(K[None], count, 0),
        points=transform(world, points) / unit,
        log_sigma=log_sigma,
        kind="failed" if lost or np.median(inliers) < 0.3 else "general",
        inliers=inliers,
        reprojection=median_of(errors),
        quality={
            "focal_log_sigma": solution.focal_log_sigma,
            "parallax_px": motion.rotation,
            "reconstructed": float(np.isfinite(points[:, 0]).mean()),
        },
    )
