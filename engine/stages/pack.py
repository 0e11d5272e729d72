"""From a world state to the members of a sample, as bytes."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from engine.types import Cloud, WorldState
from shards import codec, depth16
from shards.schema import CAMERA_KINDS, SCHEMA_VERSION, identity_name

# A tenth of a percent: far finer than any monocular depth (a few percent), and 40 % fewer bytes than every level.
DEPTH_STEP = 1e-3


def pack(state: WorldState, config: str, threads: int = 1) -> dict[str, bytes]:
    """Every member of the sample by name. `config` is the fingerprint of the run's configuration.

    Equal states give equal bytes: no time stamps, sorted JSON, one encoder thread.
    """
    clip, camera, subjects = state.clip, state.camera, state.subjects
    renderings = {"anchor": state.anchor_rendering, "holistic": state.holistic_rendering}
    scene_range = depth16.depth_range(state.scene.depth)
    condition_range = depth16.depth_range(*(r.depth for r in renderings.values()))

    values: dict[str, object] = {
        "target.mp4": clip.frames,
        "camera.npz": {
            "K": camera.K,
            "c2w": camera.c2w,
            "inliers": camera.inliers,
            "reprojection": camera.reprojection,
            "scale_t": camera.scale_t,
            "log_scale_sigma": np.float32(camera.log_scale_sigma),
            "up": camera.up,
            "kind": np.uint8(CAMERA_KINDS.index(camera.kind)),
        },
        "subjects.npz": {
            "mean": subjects.mean,
            "cov": subjects.cov,
            "observed": subjects.observed,
            "mean_camera": subjects.mean_camera,
            "uv": subjects.uv,
            "heading": subjects.heading,
            "heading_source": subjects.heading_source,
            "points": subjects.points,
        },
        "masks.npz": {"labels": state.scene.tracks.labels, "dynamic": state.scene.tracks.dynamic},
        "depth.npz": {
            "code": depth16.encode(state.scene.depth, *scene_range, step=DEPTH_STEP),
            "range": np.array(scene_range, np.float32),
            "confidence": np.rint(255 * np.clip(state.scene.confidence[:, ::4, ::4], 0, 1)).astype(np.uint8),
        },
        "background_anchor.npz": _cloud(state.anchor),
        "background_holistic.npz": _cloud(state.holistic),
    }
    for name, rendering in renderings.items():
        values[f"condition_{name}_rgb.mp4"] = rendering.rgb
        values[f"condition_{name}_depth.mkv"] = depth16.encode(rendering.depth, *condition_range, step=DEPTH_STEP)
        values[f"condition_{name}_ids.npz"] = {"ids": rendering.ids}
    for i, identity in enumerate(state.identities):
        values[identity_name(i)] = identity.rgba
    if clip.caption:
        values["caption.txt"] = clip.caption
    values["meta.json"] = _meta(state, config, scene_range, condition_range)
    with ThreadPoolExecutor(threads) as pool:  # encoders run outside the interpreter's lock, each by itself
        encoded = pool.map(lambda item: codec.encode(*item, fps=clip.fps), sorted(values.items()))
        return dict(zip(sorted(values), encoded, strict=True))


def _cloud(cloud: Cloud) -> dict[str, np.ndarray]:
    return {"xyz": cloud.xyz, "rgb": cloud.rgb, "frame": cloud.frame}


def _meta(state: WorldState, config: str, scene_range: tuple, condition_range: tuple) -> dict:
    clip, tracks, geometry = state.clip, state.scene.tracks, state.scene.geometry
    height, width = clip.size
    view = clip.view
    return {
        "schema_version": SCHEMA_VERSION,
        "key": clip.key,
        "source": {
            "uri": clip.uri,
            "video_id": clip.video_id,
            "start_s": round(float(clip.times[0]), 6),
            "end_s": round(float(clip.times[-1]), 6),
            "width": view.source_width,
            "height": view.source_height,
            "crop": [view.crop_x, view.crop_y, view.crop_width, view.crop_height],
            "frames": [int(i) for i in clip.source_frames],
        },
        "fps": clip.fps,
        "frames": len(clip.frames),
        "height": height,
        "width": width,
        "subjects": [
            {
                "label": identity.label,
                "category": identity.category,
                "identity": identity_name(i),
                "frame": identity.frame,
                "box": [int(x) for x in identity.box],
                "score": round(float(identity.score), 4),
            }
            for i, identity in enumerate(state.identities)
        ],
        "camera_kind": state.camera.kind,
        "K_source": geometry.K_source,
        "depth_range": {
            "depth.npz": [float(np.float32(x)) for x in scene_range],
            "condition_anchor_depth.mkv": [float(np.float32(x)) for x in condition_range],
            "condition_holistic_depth.mkv": [float(np.float32(x)) for x in condition_range],
        },
        "render": {**state.render, "grain": {"anchor": state.anchor.grain, "holistic": state.holistic.grain}},
        "models": {**tracks.models, **geometry.models, **state.scene.models},
        "config": config,
        "quality": {name: round(float(value), 6) for name, value in sorted(state.quality.items())},
        "verdict": state.verdict,
        "reasons": list(state.reasons),
        "pair": _pair(state),
    }


def _pair(state: WorldState) -> dict | None:
    """The other view's relation to this one: without a common frame two samples of one world could not be compared."""
    if state.clip.pair is None:
        return None
    pair_id, view = state.clip.pair
    world = state.scene.geometry.world
    return {"id": pair_id, "view": view, "world": None if world is None else np.asarray(world, float).tolist()}
