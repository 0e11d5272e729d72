"""Small samples that obey schema 1, made from a seed."""

import numpy as np

from shards import codec, depth16
from shards.plan import Unit
from shards.schema import QUALITY, SCHEMA_VERSION, identity_name

DEPTHS = ("depth.npz", "condition_anchor_depth.mkv", "condition_holistic_depth.mkv")


def values(key: str, seed: int = 0, T: int = 5, H: int = 16, W: int = 24, N: int = 1, pair: dict | None = None) -> dict:
    """Every member of a sample as a value, by name."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 255, (T, 1, 1, 3)) + np.zeros((T, H, W, 3), int)
    depth = rng.uniform(1, 9, (T, H, W)).astype(np.float32)
    near, far = depth16.depth_range(depth)
    labels = rng.integers(0, N + 1, (T, H, W)).astype(np.uint8)
    c2w = np.tile(np.eye(4, dtype=np.float32), (T, 1, 1))
    c2w[:, 0, 3] = np.linspace(0, 1, T)
    cov = np.tile(np.eye(3, dtype=np.float32) * 0.1, (N, T, 1, 1))
    cloud = {
        "xyz": rng.normal(size=(50, 3)).astype(np.float32),
        "rgb": rng.integers(0, 255, (50, 3)).astype(np.uint8),
        "frame": np.zeros(50, np.int32),
    }
    K = np.array([[20, 0, W / 2], [0, 20, H / 2], [0, 0, 1]], np.float32)
    ones = np.ones(T, np.float32)
    members: dict = {
        "target.mp4": frames.astype(np.uint8),
        "camera.npz": {
            "K": np.tile(K, (T, 1, 1)), "c2w": c2w, "inliers": ones, "reprojection": ones, "scale_t": ones,
            "log_scale_sigma": np.float32(0.1), "up": np.array([0, -1, 0], np.float32), "kind": np.uint8(3),
        },
        "subjects.npz": {
            "mean": np.zeros((N, T, 3), np.float32), "cov": cov, "observed": np.ones((N, T), bool),
            "mean_camera": np.zeros((N, T, 3), np.float32), "uv": np.zeros((N, T, 2), np.float32),
            "heading": np.zeros((N, T), np.float32), "heading_source": np.ones((N, T), np.uint8),
            "points": np.ones((N, T), np.int32),
        },
        "masks.npz": {"labels": labels, "dynamic": labels > 0},
        "depth.npz": {
            "code": depth16.encode(depth, near, far), "range": np.array([near, far], np.float32),
            "confidence": np.full((T, -(-H // 4), -(-W // 4)), 200, np.uint8),
        },
        "background_anchor.npz": cloud,
        "background_holistic.npz": cloud,
        "caption.txt": f"sample {seed}",
    }  # fmt: skip
    for which in ("anchor", "holistic"):
        members[f"condition_{which}_rgb.mp4"] = frames.astype(np.uint8)
        members[f"condition_{which}_depth.mkv"] = depth16.encode(depth, near, far)
        members[f"condition_{which}_ids.npz"] = {"ids": labels}
    for n in range(N):
        members[identity_name(n)] = rng.integers(0, 255, (8, 6, 4)).astype(np.uint8)
    depth_range = [float(np.float32(near)), float(np.float32(far))]
    members["meta.json"] = {
        "schema_version": SCHEMA_VERSION, "key": key, "fps": 16, "frames": T, "height": H, "width": W,
        "source": {"uri": f"in/{key}.mp4", "video_id": key[:12], "start_s": 0.0, "end_s": (T - 1) / 16, "width": W,
                   "height": H, "crop": [0, 0, W, H], "frames": list(range(T))},
        "subjects": [{"label": n + 1, "category": "person", "identity": identity_name(n), "frame": 0,
                      "box": [0, 0, 6, 8], "score": 0.9} for n in range(N)],
        "camera_kind": "general", "K_source": "prior", "models": {}, "config": "test", "pair": pair,
        "verdict": "kept", "reasons": [],
        "depth_range": dict.fromkeys(DEPTHS, depth_range),
        "quality": dict.fromkeys(QUALITY, 0.5),
    }  # fmt: skip
    return members


def members(key: str, seed: int = 0, **shape) -> dict[str, bytes]:
    """Every member of a sample as bytes."""
    return {name: codec.encode(name, value, fps=16) for name, value in values(key, seed, **shape).items()}


def unit(i: int, view: str = "") -> Unit:
    key = f"{i:012x}-0000" + (f"-{view}" if view else "")
    return Unit(unit=f"{i:064x}" + view, key=key, uri=f"in/{i}.mp4", start_s=0.0, end_s=0.25)


def tiny(key: str, seed: int = 0) -> dict[str, bytes]:
    """Bytes that the commit protocol accepts (a valid meta.json and some noise), without the cost of encoding."""
    noise = np.random.default_rng(seed).integers(33, 126, 200 + 100 * (seed % 7)).astype(np.uint8).tobytes()
    meta = {
        "key": key, "frames": 5, "height": 16, "width": 24, "fps": 16.0, "subjects": [], "camera_kind": "general",
        "verdict": "kept",
        "source": {"uri": "in/x.mp4", "start_s": 0.0, "end_s": 0.25}, "quality": {}, "pair": None,
    }  # fmt: skip
    return {"meta.json": codec.encode("meta.json", meta), "caption.txt": noise}
