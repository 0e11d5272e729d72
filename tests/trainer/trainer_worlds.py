"""Sample shards of small textured worlds, for training: what moves in the target moves in the condition."""

from pathlib import Path

import cv2
import numpy as np

from shards import codec, depth16
from shards.run import Run, ShardLimits, Unit
from shards.schema import SCHEMA_VERSION, identity_name


def values(key: str, seed: int, T: int, H: int, W: int, N: int = 1, pair: dict | None = None) -> dict:
    """The members the trainer reads. The target pans over a smooth texture with a coloured disc; the condition is the
    target, blurred and with a hole on top; its depth a slope with the disc in front."""
    rng = np.random.default_rng(seed)
    texture = cv2.GaussianBlur(rng.uniform(0, 255, (H, W + 2 * T, 3)).astype(np.float32), (0, 0), 3)
    texture = (texture - texture.mean()) * 4 + rng.uniform(60, 200, 3)
    colour, speed = rng.uniform(0, 255, 3), rng.uniform(0.5, 2)
    target = np.stack([texture[:, 2 * t : 2 * t + W] for t in range(T)]).clip(0, 255)
    depth = np.tile(np.linspace(9, 2, H, dtype=np.float32)[None, :, None], (T, 1, W))
    for t in range(T):
        centre = (int(W / 4 + speed * t), int(H / 2))
        cv2.circle(target[t], centre, H // 6, colour.tolist(), -1)
        cv2.circle(depth[t], centre, H // 6, 1.5, -1)
    condition = np.stack([cv2.GaussianBlur(frame, (0, 0), 2) for frame in target])
    condition[:, : H // 8] = 0
    depth[:, : H // 8] = 0
    picture = np.zeros((20, 16, 4), np.uint8)
    cv2.circle(picture, (8, 10), 7, (*colour.tolist(), 255), -1)
    near, far = 1.0, 10.0
    members = {identity_name(n): picture for n in range(N)}
    members |= {"target.mp4": target.astype(np.uint8), "caption.txt": f"a disc over texture {seed}"}
    for kind in ("anchor", "holistic"):
        members[f"condition_{kind}_rgb.mp4"] = condition.astype(np.uint8)
        members[f"condition_{kind}_depth.mkv"] = depth16.encode(depth, near, far)
    members["meta.json"] = {
        "schema_version": SCHEMA_VERSION, "key": key, "fps": 16, "frames": T, "height": H, "width": W,
        "source": {"uri": f"in/{key}.mp4", "video_id": key[:12], "start_s": 0.0, "end_s": (T - 1) / 16, "width": W,
                   "height": H, "crop": [0, 0, W, H], "frames": list(range(T))},
        "subjects": [{"label": n + 1, "category": "disc", "identity": identity_name(n), "frame": 4 * n,
                      "box": [0, 0, 16, 20], "score": 0.9} for n in range(N)],
        "camera_kind": "general", "K_source": "prior", "models": {}, "config": "test", "pair": pair, "quality": {},
        "verdict": "kept", "reasons": [],
        "depth_range": {f"condition_{kind}_depth.mkv": [near, far] for kind in ("anchor", "holistic")},
    }  # fmt: skip
    return members


def members(key: str, seed: int, **shape) -> dict[str, bytes]:
    """The members as bytes."""
    return {name: codec.encode(name, value, fps=16) for name, value in values(key, seed, **shape).items()}


def write_shards(
    folder: Path, count: int, pairs: bool = False, T: int = 5, H: int = 16, W: int = 32, N: int = 1
) -> Path:
    """`count` samples; with `pairs`, two views of each of `count` worlds. Three samples a shard."""
    made = {}
    for i in range(count):
        for view in ("a", "b") if pairs else ("",):
            key = f"{i:012x}-0000" + (f"-{view}" if view else "")
            pair = {"id": f"world{i}", "view": view} if pairs else None
            made[key] = members(key, 2 * i + (view == "b"), T=T, H=H, W=W, N=N, pair=pair)
    units = [Unit(unit=f"{i:064x}", key=key, uri="in.mp4", start_s=0, end_s=1) for i, key in enumerate(made)]
    with Run.open(str(folder), name="test", config={}, limits=ShardLimits(samples=3)) as run:
        run.extend(units)
        for unit in units:
            run.spool.put(unit, made[unit.key])
        run.finish()
    return folder
