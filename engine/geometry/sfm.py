"""Camera motion without any depth: tracks in, poses up to scale, focal length and sparse points out.

A short window of keyframes is bootstrapped twice, from points on a sphere and a camera at rest (Yu & Gallup 2014, "3D
reconstruction from accidental motion", which also holds under pure forward motion) and from the five-point essential
matrix (Nister 2004); the better of the two after bundle adjustment grows keyframe by keyframe, to both sides, and over
weak frames by velocity.
"""

from dataclasses import dataclass, field, replace

import cv2
import numpy as np

from engine.geometry.bundle import Bundle, Observations, Prior, Solution, adjust
from engine.geometry.camera import first_frame_world, interpolate_poses, invert, pose, rays, transform
from engine.geometry.classify import Motion, MotionOptions, classify_motion, fit_turning
from engine.geometry.keyframes import build_bundle, first_seen, observe, shared_keyframes
from engine.geometry.odometry import refine_poses, solve_pnp
from engine.geometry.reprojection import median_of, reprojection_errors, share_within, turning_errors
from engine.geometry.tracks import PointTracks
from engine.types import CameraKind

LOCAL = 8  # keyframes of a local bundle adjustment while the map grows
LINK = 6  # explained tracks that tie a carried keyframe to those before it: twice the three points that fix a pose


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
    quality      free_focal (pixels: what the tracks chose, though K may hold the prior's), its focal_log_sigma,
                 parallax_px (what rotation does not explain), reconstructed (share of the tracks)
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
    turning = _turning(uv, K, motion)
    if motion.kind in ("static", "rotation") or np.isinf(motion.displacement):
        return turning
    path = _travelling(uv, tracks.seen, K, focal_sigma, keyframe_every, motion)
    if path is None:
        return turning if motion.kind == "zoom" else replace(turning, kind="failed")
    if motion.kind == "general":
        return path
    # A zoom is forward motion before a flat wall, and where frames hold too few tracks anything fits: a path stands
    # only if it explains the tracks clearly better than turning.
    return path if path.kind == "general" and _clearly_better(path, turning) else turning


def _travelling(
    uv: np.ndarray, seen: np.ndarray, K: np.ndarray, focal_sigma: float, keyframe_every: int, motion: Motion
) -> Reconstruction | None:
    """The best reconstruction with translation from up to three places to start; None when none could be started."""
    keys = shared_keyframes(seen, keyframe_every)
    best = None
    for start in (0, len(keys) // 2, len(keys) // 4):
        if len(keys) - start < 3:
            continue
        found = _grown(uv, K, keys, start, focal_sigma, motion)
        if found is not None and abs(np.log(found.K[0, 0, 0] / K[0, 0])) > 3 * focal_sigma > 0:
            # A lens that the prior excludes bends a drifting path straight: it must explain clearly more than the
            # prior's own lens does. If so the map, which grew up under the wrong lens, grows again under this one.
            held = _grown(uv, K, keys, start, 0.0, motion)
            if held is None or _clearly_better(found, held):
                held = _grown(uv, found.K[0], keys, start, focal_sigma, motion)
            else:  # the lens stays in doubt
                free = {name: found.quality[name] for name in ("free_focal", "focal_log_sigma")}
                held = replace(held, quality=held.quality | free)
            found = held or found
        if found is not None and (best is None or found.inliers.mean() > best.inliers.mean()):
            best = found
        if best is not None and best.kind == "general" and best.inliers.mean() > 0.7:
            break
    return best


def _grown(
    uv: np.ndarray, K: np.ndarray, keys: np.ndarray, start: int, focal_sigma: float, motion: Motion
) -> Reconstruction | None:
    grown = _Map(uv, K, keys, focal_sigma)
    solved = grown.grow(start)
    return None if solved is None else _finish(uv, K, keys, *solved, motion, grown.weak)


def _clearly_better(a: Reconstruction, b: Reconstruction) -> bool:
    """Whether a explains at least as many sightings as b, and clearly closer (median error 15 % smaller)."""
    return a.inliers.mean() >= b.inliers.mean() and np.median(a.reprojection) < 0.85 * np.median(b.reprojection)


class _Map:
    """Incremental structure from motion over keyframes, grown to both sides of a bootstrapped window.

    c2w [F,4,4] of the keyframes (known in `begin`..`end`), points [M,3] of the tracks (NaN = unknown), the log of the
    factor on the focal length, and `weak`, the keyframes that no points placed, with the one each was carried on from.
    """

    def __init__(self, uv: np.ndarray, K: np.ndarray, keys: np.ndarray, focal_sigma: float):
        self.uv, self.K, self.keys, self.focal_sigma = uv, K.astype(np.float64), keys, focal_sigma
        self.c2w = np.repeat(np.eye(4)[None], len(keys), 0)
        self.points = np.full((len(uv), 3), np.nan)
        self.log_focal = 0.0
        self.begin = self.origin = self.end = 0
        self.weak: dict[int, int] = {}

    def grow(self, start: int) -> tuple[Solution, np.ndarray] | None:
        """(solution over all keyframes, rows of its points) from a window at keyframe `start`; None without one."""
        size = self._window(start)
        self.begin = self.origin = start
        self.end = start + size
        starts = [s for s in (self._rest(), self._essential()) if s is not None]
        if not starts:
            return None
        self._take(start, *min(starts, key=lambda s: s[0].cost))
        while self.end < len(self.keys):
            self._place(self.end, self.end - 1, self.end - 2)
            self.end += 1
            self._settle(max(self.begin, self.end - LOCAL), self.end)
        while self.begin > 0:
            self._place(self.begin - 1, self.begin, self.begin + 1)
            self.begin -= 1
            self._settle(self.begin, min(self.end, self.begin + LOCAL))
        return self._adjust(0, self.end, 60, free_focal=True)

    def _settle(self, begin: int, end: int) -> None:
        """A few steps over the newest keyframes; over all of them, with the focal length, as often as they double."""
        known = self.end - self.begin
        if known >= LOCAL and (known & (known - 1)) == 0:
            self._take(self.begin, *self._adjust(self.begin, self.end, 6, free_focal=True))
        else:
            self._take(begin, *self._adjust(begin, end, 6, free_focal=False))

    def _window(self, start: int) -> int:
        """Keyframes of the bootstrap: until the median parallax beyond rotation reaches 3 % of the focal length."""
        left = len(self.keys) - start
        for size in range(3, left + 1):
            keys = self.keys[start : start + size]
            both = np.isfinite(self.uv[:, keys, 0]).all(1)
            if both.sum() < 40:
                return max(3, size - 1)
            _, _, parallax = fit_turning(self.uv[both][:, keys], self.K, zoom=False, iterations=4)
            if parallax > 0.03 * self.K[0, 0] or size == 10:
                return size
        return left

    def _adjust(self, begin: int, end: int, steps: int, free_focal: bool) -> tuple[Solution, np.ndarray]:
        """Bundle adjustment of keyframes begin..end - 1 from what is known of them."""
        observations, rows = observe(self.uv, None, self.keys[begin:end], 3)
        bundle = build_bundle(self.c2w[begin:end], self.points[rows], observations, self.K, self.log_focal)
        return self._minimise(bundle, observations, rows, begin, steps, free_focal)

    def _minimise(self, bundle: Bundle, observations: Observations, rows, begin: int, steps: int, free_focal: bool):
        n = len(bundle.c2w)
        centre = float(np.median(bundle.log_depth)) if len(bundle.log_depth) else 0.0
        # What was grown before holds a local window: its two oldest keyframes, on the side it grows from.
        held: tuple[int, ...] = (min(max(self.origin - begin, 0), n - 1),)
        if n < self.end - self.begin:
            held = (0, 1) if begin > self.begin else (n - 2, n - 1)
        prior = Prior(
            times=self.keys[begin : begin + n].astype(np.float64),
            # 3 % of the median depth per frame squared: only a camera that sees nothing is held by it
            acceleration_sigma=np.full(n, 0.03 * np.exp(centre)),
            focal_sigma=self.focal_sigma if free_focal else 0.0,
            log_depth_sigma=3.0,
            log_depth=centre,
            fixed=held,
        )
        return adjust(bundle, observations, self.K, prior, iterations=steps, tolerance=1e-5), rows

    def _take(self, begin: int, solution: Solution, rows: np.ndarray) -> None:
        """Keep what a solution over the keyframes from `begin` on found."""
        bundle = solution.bundle
        self.c2w[begin : begin + len(bundle.c2w)] = bundle.c2w
        self.points[rows] = bundle.world_points()
        self.log_focal = bundle.log_focal

    def _rest(self) -> tuple[Solution, np.ndarray]:
        """From a camera that only turns, and all points at depth 1."""
        keys = self.keys[self.begin : self.end]
        observations, rows = observe(self.uv, None, keys, 3)
        first = first_seen(observations, len(rows))
        R, _, _ = fit_turning(self.uv[rows][:, keys], self.K, zoom=False, iterations=4)
        bundle = Bundle(
            c2w=pose(R, np.zeros((len(keys), 3))),
            log_scale=np.zeros(len(keys)),
            anchor=observations.frame[first],
            ray=rays(self.K, observations.uv[first])[:, :2],
            log_depth=np.zeros(len(rows)),
        )
        return self._minimise(bundle, observations, rows, self.begin, 40, free_focal=False)

    def _essential(self) -> tuple[Solution, np.ndarray] | None:
        """From the relative pose of the first and the last keyframe of the window."""
        keys = self.keys[self.begin : self.end]
        a, b = keys[0], keys[-1]
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
        c2w = interpolate_poses(keys.astype(float), np.array([a, b], float), ends)
        c2w[1:-1] = refine_poses(self.uv[:, keys], points, c2w, self.K, np.arange(1, len(keys) - 1))[1:-1]
        observations, rows = observe(self.uv, None, keys, 3)
        bundle = build_bundle(c2w, points[rows], observations, self.K)
        return self._minimise(bundle, observations, rows, self.begin, 40, free_focal=False)

    def _place(self, new: int, near: int, far: int) -> None:
        """The pose of keyframe `new` beside the known `near` and `far`: from points; where they do not tell (blur, a
        burst of occlusion), the turn that the shared tracks show and the velocity before, and the keyframe is weak."""
        t, before = self.keys[new], self.keys[near]
        K = self.K.copy()
        K[[0, 1], [0, 1]] *= np.exp(self.log_focal)
        known = np.flatnonzero(np.isfinite(self.uv[:, t, 0]) & np.isfinite(self.points[:, 0]))
        for threshold in (4.0, 12.0):
            found = solve_pnp(self.points[known], self.uv[known, t], K, self.c2w[near], threshold, 10)
            # a blunder of ten points far from the path is no support
            if found is not None and found[1].mean() > 0.2:
                self.c2w[new] = found[0]
                return
        self.weak[new] = near
        step = (t - before) / (before - self.keys[far])
        centre = self.c2w[near, :3, 3] + step * (self.c2w[near, :3, 3] - self.c2w[far, :3, 3])
        R = self.c2w[near, :3, :3]
        both = np.isfinite(self.uv[:, [before, t], 0]).all(1)
        if both.sum() >= 6:
            R = R @ fit_turning(self.uv[both][:, [before, t]], K, zoom=False, iterations=4)[0][1]
        self.c2w[new] = pose(R, centre)


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
        quality={
            "free_focal": float(np.median(K_t[:, 0, 0])),
            "focal_log_sigma": float("inf"),
            "parallax_px": motion.rotation,
            "reconstructed": 0.0,
        },
    )


def _cut_off(close: np.ndarray, weak: dict[int, int]) -> float:
    """Share of the keyframes that lie beyond a carried one which the tracks do not tie to what came before: their place
    is a guess. close bool [M,F]: where a track is seen and explained; weak: carried keyframe -> its neighbour.

    A tie is a track that the neighbour and the keyframe beyond it fixed (two sightings place a point
    whatever the pose of the second is, so two alone tie nothing)."""
    lost, count = 0, close.shape[1]
    for k, near in weak.items():
        far = 2 * near - k
        if 0 <= far < count and (close[:, k] & close[:, near] & close[:, far]).sum() < LINK:
            lost = max(lost, count - k if k > near else k + 1)
    return lost / count


def _finish(uv, K, keys, solution: Solution, rows, motion: Motion, weak: dict[int, int]) -> Reconstruction:
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
    lost = _cut_off(errors[:, keys] < 2, weak)
    wild = np.nanmedian(np.minimum(errors[rows], 1e3), axis=1) > 4
    points[rows[wild]], log_sigma[rows[wild]] = np.nan, np.inf
    seen = np.isfinite(uv[:, 0, 0]) & np.isfinite(points[:, 0])
    depth = transform(invert(c2w[0]), points[seen])[:, 2] if seen.any() else np.exp(bundle.log_depth)
    unit = float(np.median(depth[depth > 0]))
    world = invert(c2w[0])
    c2w = first_frame_world(c2w)
    c2w[:, :3, 3] /= unit
    inliers = share_within(errors, 2.0)
    return Reconstruction(
        c2w=c2w,
        K=np.repeat(K[None], count, 0),
        points=transform(world, points) / unit,
        log_sigma=log_sigma,
        kind="failed" if lost > 0.25 or np.median(inliers) < 0.3 else "general",
        inliers=inliers,
        reprojection=median_of(errors),
        quality={
            "free_focal": float(K[0, 0]),
            "focal_log_sigma": solution.focal_log_sigma,
            "parallax_px": motion.rotation,
            "reconstructed": float(np.isfinite(points[:, 0]).mean()),
        },
    )
