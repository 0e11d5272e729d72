"""How good a clip's unrolling is, in numbers: the manifest columns of `shards.schema.QUALITY`."""

import numpy as np

from engine.types import Camera, Clip, Cloud, Rendering, Scene, Subjects
from shards.schema import HOLE, QUALITY

# Metres per frame, 0.3 m/s at 16 fps: the sway of a camera held by somebody who stands is no jerky path
SLOWEST_STEP = 0.02


def measure_quality(
    clip: Clip,
    scene: Scene,
    camera: Camera,
    subjects: Subjects,
    holistic: Cloud,
    anchor_rendering: Rendering,
    holistic_rendering: Rendering,
) -> dict[str, float]:
    """Every column of QUALITY. Raises KeyError when a stage did not report a number that only it can know."""
    check = self_check(clip, scene, camera, holistic_rendering)
    found = {
        "pose_inlier_ratio": camera.inliers.mean(),
        "pose_reprojection_px": np.median(camera.reprojection),
        **path_quality(camera.c2w[:, :3, 3].astype(np.float64)),
        "log_scale_sigma": camera.log_scale_sigma,
        "depth_flicker": (scene.quality | camera.quality)["depth_flicker"],
        "depth_confidence": scene.confidence[scene.static].mean() if scene.static.any() else 0.0,
        "subject_observed_share": subjects.observed.mean() if subjects.observed.size else 0.0,
        "subject_area_share": (scene.tracks.labels > 0).mean(),
        "anchor_coverage": coverage(anchor_rendering),
        "holistic_coverage": coverage(holistic_rendering),
        **check,
    }
    return {name: float(found[name]) for name in QUALITY}


def path_quality(centres: np.ndarray) -> dict[str, float]:
    """camera_jerk, camera_jerk_relative and path_length_m of camera centres [T,3], metres."""
    steps = np.diff(centres, axis=0)
    lengths = np.linalg.norm(steps, axis=-1)
    third = np.linalg.norm(np.diff(steps, n=2, axis=0), axis=-1)
    jerk = float(np.percentile(third, 99)) if len(third) else 0.0
    step = max(float(np.median(lengths)), SLOWEST_STEP) if len(lengths) else SLOWEST_STEP
    return {"camera_jerk": jerk, "camera_jerk_relative": jerk / step, "path_length_m": float(lengths.sum())}


def coverage(rendering: Rendering) -> float:
    """Mean over the frames of the share of background pixels, among those no subject hides, that are no hole."""
    shares = []
    for ids in rendering.ids:
        background, holes = int((ids == 0).sum()), int((ids == HOLE).sum())
        shares.append(background / max(background + holes, 1))
    return float(np.mean(shares))


def self_check(clip: Clip, scene: Scene, camera: Camera, rendering: Rendering) -> dict[str, float]:
    """The re-rendered background against the clip on the static pixels that it fills and no subject covers.

    PSNR (peak 255) of RGB over all frames together, and the mean |z_render - z| / z with z = scene.depth *
    scale_t. Without any such pixel both say the worst: 0 dB and 1.
    """
    squared, relative, pixels = 0.0, 0.0, 0
    for t in range(len(clip.frames)):
        use = scene.static[t] & (rendering.ids[t] == 0) & (scene.depth[t] > 0)
        difference = rendering.rgb[t][use].astype(np.int32) - clip.frames[t][use]
        z = scene.depth[t][use].astype(np.float64) * float(camera.scale_t[t])
        squared += float((difference**2).sum())
        relative += float((np.abs(rendering.depth[t][use] - z) / z).sum())
        pixels += int(use.sum())
    if not pixels:
        return {"selfcheck_psnr_db": 0.0, "selfcheck_depth_absrel": 1.0}
    mse = max(squared / (3 * pixels), 1e-4)  # 88 dB at most: equal pictures would give infinity
    return {"selfcheck_psnr_db": 10 * np.log10(255**2 / mse), "selfcheck_depth_absrel": relative / pixels}
