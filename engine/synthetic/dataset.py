"""Writes rendered views as videos with their truth beside them, in the layout that `precomputed` perception reads.

<name>.mp4           H.264
<name>.txt           caption
<name>/depth.npz     depth float32 [T,H,W] z-depth in metres, 0 = sky; sky bool [T,H,W]
<name>/masks.npz     labels uint8 [T,H,W], 0 = background, n = subject n
<name>/camera.npz    K float64 [T,3,3] pixels, c2w float64 [T,4,4] metres, up [3]: the world's own frame
<name>/truth.npz     agent int [N], root and centroid float32 [N,T,3], heading [N,T] in the world's frame
<name>/pair.json     {id, view}: views with one id show one world at one time in one frame of reference
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.synthetic.camera_path import UP
from engine.synthetic.render import View, render
from engine.synthetic.world import make_world
from shards.codec import CODECS

TRUTH = ("depth.npz", "masks.npz", "camera.npz", "truth.npz")


@dataclass(frozen=True)
class Recording:
    """A video to render: name, world arguments, the agent whose view it is, caption, (pair id, view) or None."""

    name: str
    world: dict[str, Any]
    caption: str
    agent: int = 0
    pair: tuple[str, str] | None = None


_MEETING = {"kind": "street", "camera": "walk", "face_to_face": True, "seed": 3}
SAMPLES = (
    Recording("walk", {"kind": "street", "camera": "walk"}, "Two people walk along a street of brick houses."),
    Recording("orbit", {"kind": "room", "camera": "orbit", "seed": 2}, "Two people walk in a circle in a hall."),
)
PAIRS = (
    Recording(
        "meeting_a", _MEETING, "A person walks backwards along a street, facing the camera.", 0, ("meeting", "a")
    ),
    Recording("meeting_b", _MEETING, "A person walks along a street towards the camera.", 1, ("meeting", "b")),
)


def write_recordings(
    folder: Path, recordings: tuple[Recording, ...], log: Callable[[str], None] = print, **size
) -> int:
    """Render what is not complete in `folder` yet and return how many were written. `size` goes to `make_world`
    (frames, height, width, fps). The video comes last: where it stands, its truth is complete."""
    written = 0
    for recording in recordings:
        if is_complete(folder, recording):
            log(f"{recording.name}: complete in {folder}")
            continue
        log(f"{recording.name}: rendering, about a minute of CPU at full size")
        write_recording(folder, recording, render(make_world(**{**recording.world, **size}), recording.agent))
        written += 1
    return written


def is_complete(folder: Path, recording: Recording) -> bool:
    """Whether the video and all of its truth are there."""
    truth = [*TRUTH, *(["pair.json"] if recording.pair else [])]
    files = [folder / f"{recording.name}.mp4", *(folder / recording.name / name for name in truth)]
    return all(f.is_file() and f.stat().st_size > 0 for f in files)


def write_recording(folder: Path, recording: Recording, view: View) -> None:
    """Write one view. Equal views give equal bytes."""
    beside = folder / recording.name
    beside.mkdir(parents=True, exist_ok=True)
    npz, video = CODECS["npz"][0], CODECS["video"][0]
    for name, arrays in truth_arrays(view).items():
        _put(beside / name, npz(name, arrays, 0))
    if recording.pair:
        pair = {"id": recording.pair[0], "view": recording.pair[1]}
        _put(beside / "pair.json", (json.dumps(pair) + "\n").encode())
    _put(folder / f"{recording.name}.txt", (recording.caption + "\n").encode())
    _put(folder / f"{recording.name}.mp4", video(recording.name, view.frames, view.world.fps))


def truth_arrays(view: View) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of every truth file of a view."""
    return {
        "depth.npz": {"depth": _short(view.depth), "sky": view.depth == 0},
        "masks.npz": {"labels": view.labels},
        "camera.npz": {"K": view.K, "c2w": view.c2w, "up": UP},
        "truth.npz": {
            "agent": np.array(view.figures, np.int64),
            "root": view.root,
            "centroid": view.centroid,
            "heading": view.heading,
        },
    }


def _short(depth: np.ndarray) -> np.ndarray:
    """Depth with the last 9 bits of the mantissa rounded away: exact to 3e-5, 0.15 mm at 5 m, in a third less space."""
    return ((depth.view(np.uint32) + 0x100) & np.uint32(0xFFFFFE00)).view(np.float32)


def _put(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    os.replace(part, path)
