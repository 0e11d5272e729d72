"""One sample as files that people can open: its members, pictures, point clouds, and the contact sheet."""

from pathlib import Path

import numpy as np
from PIL import Image

from shards import depth16
from shards.dataset import Sample


def export(sample: Sample, folder: Path) -> list[Path]:
    """Write the sample under `folder`; returns what was written.

    The members as they are (.mp4 play as they are), `clouds/*.ply`, and under `pictures/` the first, middle and last
    frame of clip, masks and depth, and the contact sheet.
    """
    from shards.contact_sheet import contact_sheet, depth_colours, overlay_labels

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name in sample:
        written.append(folder / name)
        written[-1].write_bytes(sample.raw(name))
    meta, pictures = sample["meta.json"], folder / "pictures"
    pictures.mkdir(exist_ok=True)

    def picture(name: str, image: np.ndarray | Image.Image) -> None:
        written.append(pictures / name)
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(written[-1])

    clip = sample["target.mp4" if "target.mp4" in sample else "condition_holistic_rgb.mp4"]
    for t in sorted({0, meta["frames"] // 2, meta["frames"] - 1}):
        picture(f"frame_{t:04d}.png", clip[t])
        if "masks.npz" in sample:
            masks = sample["masks.npz"]
            picture(f"masks_{t:04d}.png", overlay_labels(clip[t], masks["labels"][t], masks["dynamic"][t]))
        if "depth.npz" in sample:
            near, far = (float(x) for x in sample["depth.npz"]["range"])
            metres = depth16.decode(sample["depth.npz"]["code"][t], near, far)
            picture(f"depth_{t:04d}.png", depth_colours(metres, near, far))
    for which in ("anchor", "holistic"):
        cloud = sample[f"background_{which}.npz"]
        written.append(folder / "clouds" / f"background_{which}.ply")
        written[-1].parent.mkdir(exist_ok=True)
        written[-1].write_bytes(ply(cloud["xyz"], cloud["rgb"]))
    picture("contact_sheet.png", contact_sheet(sample))
    return written


def ply(xyz: np.ndarray, rgb: np.ndarray) -> bytes:
    """Binary little-endian PLY of a coloured cloud: xyz float32 [P,3], rgb uint8 [P,3]."""
    points = np.empty(len(xyz), [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    points["xyz"], points["rgb"] = xyz, rgb
    fields = [f"property float {axis}" for axis in "xyz"] + [f"property uchar {c}" for c in ("red", "green", "blue")]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(xyz)}", *fields, "end_header"]
    return ("\n".join(header) + "\n").encode() + points.tobytes()
