"""Camera: the class of the operator's motion, its poses and its metric scale, with how well they are known."""

from dataclasses import dataclass, replace

import numpy as np

from engine.geometry.bundle import BundleOptions, Prior, adjust
from engine.geometry.camera import first_frame_world, interpolate_poses, invert, pose, transform
from engine.geometry.classify import Motion, MotionOptions, classify_motion
from engine.geometry.keyframes import build_bundle, observe, shared_keyframes
from engine.geometry.odometry import (
    Trajectory,
    chain_poses,
    lift_points,
    refine_poses,
    robust_centre,
    synchronise_scales,
)
from engine.geometry.reprojection import median_of, reprojection_errors, share_within, turning_errors
from engine.geometry.tracks import PointTracks, TrackOptions, sample_depth, track_points
from engine.options import option
from engine.types import Camera, CameraKind, Clip, Scene


@dataclass
class CameraOptions:
    tracks: TrackOptions = option(TrackOptions(), "points followed over the clip")
    motion: MotionOptions = option(MotionOptions(), "classes of camera motion")
    bundle: BundleOptions = option(BundleOptions(), "keyframe bundle adjustment")
    keyframe_every: int = option(
        4, "frames between keyframes at most (a quarter of a second at 16 fps); fewer where tracks die sooner"
    )
    inlier_px: float = option(2.0, "reprojection error up to which a pose explains a track, pixels")
    focal: str = option(
        "shared",
        "shared = one lens for the clip, the refined median of the frames' estimates; per_frame = every frame's focal "
        "length is trusted while the camera travels (a calibrated zoom)",
        choices=("shared", "per_frame"),
    )
    synchronise_scale: bool = option(
        True, "every frame's depth takes the scale of the path (scale_t); off = the frames' own scales are trusted"
    )
    focal_sigma_estimated: float = option(
        0.03,
        "uncertainty of the log of a focal length that a model estimated (MoGe-2: about 3 %), refined with the poses",
    )
    focal_sigma_prior: float = option(0.15, "uncertainty of the log of a focal length that is only a stated prior")
    overrule_px: float = option(
        1.7,
        "median motion of the points that turning does not explain, pixels at 832 wide, above which a perception that "
        "saw no translation is overruled: rolling shutter and lens distortion alone leave about 1 (1.3 on a tele pan)",
    )
    sure_depth: float = option(
        0.3, "depth confidence from which depth holds the path: a guess (ground, backdrop) is wrong by half, not by 5 %"
    )
    least_sure: float = option(0.1, "share of the sightings with sure depth below which guesses count as well")
    failed_inliers: float = option(0.3, "mean share of explained tracks below which the camera counts as failed")


def solve_camera(clip: Clip, scene: Scene, options: CameraOptions) -> Camera:
    """The camera of every frame, in metres, frame 0 the identity.

    Poses that the user gave (`geometry.c2w_exact`) are kept and only measured; poses that a model estimated are the
    start of the refinement; without any, perspective-n-point against lifted depth gives the start. A camera without
    parallax gets exactly zero translation. The clip's metric scale is the robust centre of the frames' depth scales.
    """
    tracks = track_points(clip.frames, scene.static, options.tracks)
    uv = tracks.uv.astype(np.float64)
    depth = _depth_of(tracks, scene, options)
    K = np.median(scene.K.astype(np.float64), axis=0)
    motion = classify_motion(tracks, K, clip.size[1], options.motion)
    given = scene.geometry.c2w
    if given is not None:
        given = first_frame_world(given.astype(np.float64))
        if motion.kind == "zoom" and _moves(given):  # perception found a path that explains the tracks better
            motion = replace(motion, kind="general")
    if given is not None and scene.geometry.c2w_exact:
        kind: CameraKind = "general" if motion.kind == "failed" else motion.kind
        K_t = scene.K.astype(np.float64)
        points = lift_points(uv, depth, given, K_t)
        errors = reprojection_errors(uv, points, given, K_t)
        solved = Trajectory(given, _depth_scales(uv, depth, points, given), np.ones(len(given), bool), points)
    elif motion.kind in ("static", "rotation", "zoom") or _rests(given, motion, clip.size[1], options):
        kind = "rotation" if motion.kind in ("general", "failed") else motion.kind
        K_t = _turning_intrinsics(scene.K.astype(np.float64), motion)
        errors = turning_errors(uv, motion.R, K_t)
        solved = _turning_path(uv, depth, motion, K_t)
    else:
        kind = "general"
        K_t = np.repeat(K[None], len(clip.frames), 0)
        if per_frame := options.focal == "per_frame":
            K_t = scene.K.astype(np.float64)
            uv = _through_lens(uv, K_t, K)
        start = chain_poses(uv, depth, K) if given is None else _start_from(given, uv, depth, K)
        sigma = {"estimated": options.focal_sigma_estimated, "prior": options.focal_sigma_prior}
        focal_sigma = 0.0 if per_frame else sigma.get(scene.geometry.K_source, 0.0)
        solved, K = _refine(uv, depth, K, focal_sigma, start, motion, options)
        if not per_frame:
            K_t = np.repeat(K[None], len(clip.frames), 0)
        errors = reprojection_errors(uv, solved.points, solved.c2w, K)
        if not solved.solved.mean() > 0.5 or share_within(errors, options.inlier_px).mean() < options.failed_inliers:
            # No path is better than one that jumps: what the camera turned, and no translation.
            kind = "failed"
            K_t = _turning_intrinsics(scene.K.astype(np.float64), motion)
            errors = turning_errors(uv, motion.R, K_t)
            solved = replace(_turning_path(uv, depth, motion, K_t), solved=solved.solved)
    return _camera(scene, kind, K_t, solved, errors, motion, options)


def _depth_of(tracks: PointTracks, scene: Scene, options: CameraOptions) -> np.ndarray:
    """Depth [M,T] of each sighting in metres (0 = none): what perception is sure of, and its guesses as well only
    where it is sure of next to nothing (a camera that turns before a backdrop)."""
    sure = sample_depth(scene.depth, scene.static & (scene.confidence >= options.sure_depth), tracks)
    if (sure > 0).sum() < options.least_sure * tracks.seen.sum():
        sure = sample_depth(scene.depth, scene.static, tracks)
    return sure.astype(np.float64)


def _through_lens(uv: np.ndarray, K_t: np.ndarray, K: np.ndarray) -> np.ndarray:
    """uv [N,T,2] of frames with lenses K_t [T,3,3] as one lens K [3,3] would see the same rays."""
    lens_t, lens = K_t[:, [0, 1], [0, 1]], K[[0, 1], [0, 1]]
    return (uv - K_t[:, :2, 2]) / lens_t * lens + K[:2, 2]


def _rests(c2w: np.ndarray | None, motion: Motion, width: int, options: CameraOptions) -> bool:
    """Whether perception says that the camera only turned (poses without any translation) and the tracks do not show
    clearly more parallax than lenses and shutters fake."""
    return c2w is not None and not _moves(c2w) and motion.rotation < options.overrule_px * width / 832


def _moves(c2w: np.ndarray) -> bool:
    return bool(np.ptp(c2w[:, :3, 3], axis=0).max() > 1e-6)


def _start_from(c2w: np.ndarray, uv: np.ndarray, depth: np.ndarray, K: np.ndarray) -> Trajectory:
    points = lift_points(uv, depth, c2w, np.repeat(K[None], len(c2w), 0))
    return Trajectory(c2w, np.zeros(len(c2w)), np.ones(len(c2w), bool), points)


def _refine(
    uv: np.ndarray,
    depth: np.ndarray,
    K: np.ndarray,
    focal_sigma: float,
    start: Trajectory,
    motion: Motion,
    options: CameraOptions,
) -> tuple[Trajectory, np.ndarray]:
    """Keyframe bundle adjustment, then the frames between, then the metric scale: the path and the refined K."""
    tuning = options.bundle
    count = uv.shape[1]
    keys = shared_keyframes(np.isfinite(uv[..., 0]), options.keyframe_every)
    observations, rows = observe(uv, depth, keys, 2)
    if len(rows) < options.motion.minimum_tracks:
        return replace(start, solved=np.zeros(count, bool)), K
    log_scale = start.log_scale[keys] - robust_centre(start.log_scale[keys])
    unit = np.exp(-robust_centre(start.log_scale[keys]))
    c2w = start.c2w.copy()
    c2w[:, :3, 3] *= unit
    bundle = build_bundle(c2w[keys], start.points[rows] * unit, observations, K, log_scale=log_scale)
    # Depth noise is smooth over about 100 px: N values of a frame count as `depth_cells` independent ones.
    per_frame = (observations.depth > 0).sum() / len(keys)
    depth_sigma = tuning.depth_sigma * np.sqrt(max(1.0, per_frame / tuning.depth_cells))
    typical = float(np.exp(np.median(bundle.log_depth)))
    calm = np.clip(motion.rotation / tuning.low_parallax_px, 0.02, 1)  # little parallax: trust a smooth path more
    prior = Prior(
        times=keys.astype(np.float64),
        acceleration_sigma=np.full(len(keys), tuning.acceleration_sigma * typical * calm),
        scale_sigma=tuning.scale_sigma if options.synchronise_scale else 1e-4,  # 0.01 %: one scale for all frames
        focal_sigma=focal_sigma,
    )
    found = adjust(
        bundle, observations, K, prior, tuning.pixel_sigma, depth_sigma, tuning.iterations, 1e-5, tuning.cauchy
    ).bundle
    K = K.copy()
    K[[0, 1], [0, 1]] *= np.exp(found.log_focal)
    points = np.full((len(uv), 3), np.nan)
    points[rows] = found.world_points()
    between = interpolate_poses(np.arange(count, dtype=float), keys.astype(float), found.c2w)
    c2w = refine_poses(uv, points, between, K, np.setdiff1d(np.arange(count), keys))
    log_scale = _depth_scales(uv, depth, points, c2w)
    centre = robust_centre(log_scale)
    c2w = first_frame_world(c2w)
    c2w[:, :3, 3] *= np.exp(-centre)
    return Trajectory(c2w, log_scale - centre, start.solved, points * np.exp(-centre)), K


def _depth_scales(uv: np.ndarray, depth: np.ndarray, points: np.ndarray, c2w: np.ndarray) -> np.ndarray:
    """[T]: median log ratio of the known points' depth to the measured one; 0 where nothing is measured."""
    out = np.zeros(len(c2w))
    for t, world in enumerate(invert(c2w)):
        index = np.flatnonzero(np.isfinite(uv[:, t, 0]) & np.isfinite(points[:, 0]) & (depth[:, t] > 0))
        z = transform(world, points[index])[:, 2]
        ratio = z[z > 0] / depth[index[z > 0], t]
        out[t] = np.median(np.log(ratio)) if len(ratio) else 0.0
    return out


def _turning_path(uv: np.ndarray, depth: np.ndarray, motion: Motion, K: np.ndarray) -> Trajectory:
    """A camera on the spot: each point keeps its distance, so the frames' depth scales come from distances alone."""
    count = len(K)
    lens = np.stack([K[:, 0, 0], K[:, 1, 1]], -1)
    distance = depth * np.sqrt(1 + (((uv - K[:, :2, 2]) / lens) ** 2).sum(-1))
    known = np.isfinite(distance) & (distance > 0)
    log_scale = synchronise_scales(np.where(known, np.log(np.where(known, distance, 1)), np.nan))
    c2w = pose(motion.R, np.zeros((count, 3)))
    return Trajectory(c2w, log_scale - robust_centre(log_scale), np.ones(count, bool), lift_points(uv, depth, c2w, K))


def _turning_intrinsics(K: np.ndarray, motion: Motion) -> np.ndarray:
    """K [T,3,3] under the fitted focal factors; a zoom keeps the median focal length of the estimates."""
    out = np.repeat(np.median(K, axis=0)[None], len(K), 0)
    if motion.kind == "zoom":
        base = np.median(K[:, [0, 1], [0, 1]] / motion.focal[:, None], axis=0)
        out[:, [0, 1], [0, 1]] = base * motion.focal[:, None]
    else:
        out[:, [0, 1], [0, 1]] *= motion.focal[:, None]
    return out


def _camera(
    scene: Scene,
    kind: CameraKind,
    K: np.ndarray,
    path: Trajectory,
    errors: np.ndarray,
    motion: Motion,
    options: CameraOptions,
) -> Camera:
    count = len(path.c2w)
    inliers, reprojection = share_within(errors, options.inlier_px), median_of(errors)
    # A frame without any point has no error: it carries the clip's worst instead of an infinity
    finite = reprojection[np.isfinite(reprojection)]
    reprojection = np.where(np.isfinite(reprojection), reprojection, finite.max() if len(finite) else 0.0)
    spread = 1.4826 * float(np.median(np.abs(path.log_scale - np.median(path.log_scale))))
    centres = path.c2w[:, :3, 3]
    log_scale = path.log_scale if options.synchronise_scale else np.full(count, np.median(path.log_scale))
    third = np.linalg.norm(np.diff(centres, 3, axis=0), axis=1) if count > 3 else np.zeros(1)
    up = np.array([0.0, -1.0, 0.0]) if scene.geometry.up is None else scene.geometry.up
    # The scale is a mean over the frames (its statistical error falls with their number) of heads that share a bias.
    log_scale_sigma = float(np.hypot(scene.geometry.log_scale_sigma, spread / np.sqrt(count)))
    quality = {
        "pose_inlier_ratio": float(inliers.mean()),
        "pose_reprojection_px": float(np.median(reprojection)),
        "camera_jerk": float(np.percentile(third, 99)),
        "path_length_m": float(np.linalg.norm(np.diff(centres, axis=0), axis=1).sum()),
        "log_scale_sigma": log_scale_sigma,
        "log_scale_spread": spread,
        "parallax_px": float(min(motion.rotation, 1e6)),
        "pose_solved_share": float(path.solved.mean()),
        "tracks_per_frame": float((~np.isnan(errors)).sum(0).mean()),
    }
    return Camera(
        K=K.astype(np.float32),
        c2w=path.c2w.astype(np.float32),
        kind=kind,
        inliers=inliers.astype(np.float32),
        reprojection=reprojection.astype(np.float32),
        scale_t=np.exp(log_scale).astype(np.float32),
        log_scale_sigma=log_scale_sigma,
        up=np.asarray(up, np.float32),
        quality=quality,
    )
