"""Perception that people bring along: depth, masks and cameras in files beside the videos.

    <root>/<video stem>/depth.npz    depth float32 or float16 [S,h,w] z-depth in metres, 0 = no value;
                                     optional sky bool [S,h,w] and confidence float [S,h,w] in 0..1
    <root>/<video stem>/masks.npz    labels uint8 [S,h,w], 0 = background, 1.. = subjects, 255 = moving but no subject;
                                     optional dynamic bool [S,h,w]
    <root>/<video stem>/camera.npz   K [3,3] or [S,3,3] in pixels of the video; optional c2w [S,4,4] camera-to-world in
                                     metres (any world) and up [3], the unit up direction of that world

S counts the frames of the VIDEO (as they decode, rotation applied), not those of a clip. Maps may have another size
(h, w) than the video when they show the same field of view. A file may be absent when `fill` names an
implementation that answers in its place.
"""

from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import fsspec
import numpy as np

from engine.geometry import camera as geometry
from engine.ingest.view import apply_view, view_intrinsics
from engine.options import option
from engine.perception import Models
from engine.types import Clip, DepthEstimate, GeometryEstimate, SubjectTrack, Tracks, View
from shards.schema import HOLE


@dataclass
class PrecomputedOptions:
    root: str = option("", "folder or URL that holds one folder per video stem; empty = the folder of the video")
    fill: str = option("", "perception that answers where a file is absent; empty = an absent file is an error")
    category: str = option("person", "what the labelled subjects are called in the sample")
    log_scale_sigma: float = option(
        0.01,
        "standard deviation of the log of the given depth's metric scale: the file cannot say; 1 % is a good sensor",
    )


class Folder:
    """The files of one clip's video: where they are, whether they are there, their frames cut to the clip."""

    def __init__(self, clip: Clip, root: str):
        video = PurePosixPath(clip.uri)
        base = root.rstrip("/") if root else clip.uri.rpartition("/")[0] or "."
        self.url, self.clip = f"{base}/{video.stem}", clip

    def has(self, name: str) -> bool:
        fs, path = fsspec.core.url_to_fs(f"{self.url}/{name}")
        return bool(fs.exists(path))

    def load(self, name: str, required: str, optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        """The named arrays of a file. ValueError names the file and the array that it lacks."""
        with fsspec.open(f"{self.url}/{name}", "rb") as file, np.load(file, allow_pickle=False) as arrays:
            if required not in arrays.files:
                raise ValueError(f"{self.url}/{name}: expected an array {required!r}, found {sorted(arrays.files)}")
            return {key: arrays[key] for key in (required, *optional) if key in arrays.files}

    def frames(self, name: str, array: np.ndarray, axes: int) -> np.ndarray:
        """The clip's frames of an array [S,...] of `axes` axes over the video's frames.

        One frame may be missing at the end, since decoders disagree about the last one: its neighbour stands in.
        """
        last = int(self.clip.source_frames.max())
        if array.ndim != axes or len(array) < last:
            raise ValueError(
                f"{self.url}/{name}: clip {self.clip.key} shows frames 0 to {last} of its video, so an array of {axes} "
                f"axes with at least {last + 1} frames was expected, found {list(array.shape)}; "
                "write one entry per video frame"
            )
        return array[np.minimum(self.clip.source_frames, len(array) - 1)]

    def maps(self, name: str, array: np.ndarray) -> np.ndarray:
        """Maps [S,h,w] of the video as maps [T,H,W] of the clip: the value under each pixel's centre."""
        return np.stack([apply_view(frame, self.clip.view, "nearest") for frame in self.frames(name, array, 3)])

    def missing(self, name: str, role: str) -> FileNotFoundError:
        return FileNotFoundError(
            f"{self.url}/{name}: not there, and nothing fills in. Put the file there, set "
            f"perception.precomputed.root to the folder that holds {self.url.rpartition('/')[2]}/, or name what should "
            f"answer for the {role} with "
            "perception.precomputed.fill=embedded"
        )


class PrecomputedTracker:
    """Masks from masks.npz, or those of the tracker that fills in."""

    def __init__(self, options: PrecomputedOptions | None = None, fill: Models | None = None):
        self.options, self.fill = options or PrecomputedOptions(), fill

    def available(self, clip: Clip) -> bool:
        return Folder(clip, self.options.root).has("masks.npz")

    def track(self, clip: Clip) -> Tracks:
        folder = Folder(clip, self.options.root)
        if not folder.has("masks.npz"):
            if self.fill is None:
                raise folder.missing("masks.npz", "masks")
            return self.fill.tracker.track(clip)
        arrays = folder.load("masks.npz", "labels", ("dynamic",))
        labels = folder.maps("masks.npz", arrays["labels"])
        dynamic = labels > 0
        if "dynamic" in arrays:
            dynamic = dynamic | folder.maps("masks.npz", arrays["dynamic"]).astype(bool)
        return tracks_of(labels, dynamic, self.options.category, {"tracker": _source(folder, "masks.npz")})


class PrecomputedGeometry:
    """Depth from depth.npz and cameras from camera.npz; what is absent comes from the geometry that fills in, which is
    told the given K."""

    def __init__(self, options: PrecomputedOptions | None = None, fill: Models | None = None):
        self.options, self.fill = options or PrecomputedOptions(), fill

    def available(self, clip: Clip) -> bool:
        folder = Folder(clip, self.options.root)
        return folder.has("depth.npz") and (clip.K is not None or folder.has("camera.npz"))

    def geometry(self, clip: Clip, tracks: Tracks) -> GeometryEstimate:
        folder = Folder(clip, self.options.root)
        known: dict[str, Any] = {}
        models = {}
        if folder.has("depth.npz"):
            known |= _depth(folder) | {"log_scale_sigma": self.options.log_scale_sigma}
            models["depth"] = _source(folder, "depth.npz")
        if folder.has("camera.npz"):
            known |= _camera(folder) | {"K_source": "user"}
            models["camera"] = _source(folder, "camera.npz")
        elif clip.K is not None and "depth" in known:
            known |= {
                "K": np.repeat(np.asarray(clip.K, np.float32)[None], len(clip.frames), 0),
                "K_source": clip.K_source,
            }
        if "depth" in known and "K" in known:
            return GeometryEstimate(**known, models=models)
        if self.fill is None:
            raise folder.missing(*(("camera.npz", "intrinsics") if "depth" in known else ("depth.npz", "depth")))
        if "K" in known:
            clip = replace(clip, K=np.median(known["K"].astype(np.float64), 0), K_source="user")
        estimate = self.fill.geometry.geometry(clip, tracks)
        return replace(estimate, **known, models=estimate.models | models)


class PrecomputedDepth:
    """Nothing to add where depth.npz gave the geometry its depth; elsewhere the depth model that fills in."""

    def __init__(self, options: PrecomputedOptions | None = None, fill: Models | None = None):
        self.options, self.fill = options or PrecomputedOptions(), fill

    def available(self, clip: Clip) -> bool:
        return Folder(clip, self.options.root).has("depth.npz")

    def depth(self, clip: Clip, tracks: Tracks, geometry: GeometryEstimate) -> DepthEstimate | None:
        if self.available(clip) or self.fill is None or self.fill.depth is None:
            return None
        return self.fill.depth.depth(clip, tracks, geometry)


def precomputed(options: PrecomputedOptions | None = None, fill: Models | None = None) -> Models:
    """The three adapters over one folder; `fill` answers for the files that are absent."""
    return Models(
        PrecomputedTracker(options, fill), PrecomputedGeometry(options, fill), PrecomputedDepth(options, fill)
    )


def tracks_of(labels: np.ndarray, dynamic: np.ndarray, category: str, models: dict[str, Any]) -> Tracks:
    """Tracks of given labels [T,H,W]: subjects are renumbered 1..N in the order of their numbers, 255 stays out."""
    present = [int(n) for n in np.unique(labels) if n not in (0, HOLE)]
    table = np.zeros(256, np.uint8)
    table[present] = np.arange(1, len(present) + 1)
    labels = table[labels]
    subjects = []
    for n in range(1, len(present) + 1):
        seen = (labels == n).any((1, 2))
        subjects.append(SubjectTrack(n, category, seen.astype(np.float32)))
    return Tracks(labels, dynamic | (labels > 0), tuple(subjects), models)


def _depth(folder: Folder) -> dict[str, np.ndarray]:
    arrays = folder.load("depth.npz", "depth", ("sky", "confidence"))
    depth = folder.maps("depth.npz", arrays["depth"]).astype(np.float32)
    depth[~np.isfinite(depth) | (depth < 0)] = 0
    sky = np.zeros(depth.shape, bool)
    if "sky" in arrays:
        sky = folder.maps("depth.npz", arrays["sky"]).astype(bool)
        depth[sky] = 0
    confidence = (depth > 0).astype(np.float32)
    if "confidence" in arrays:
        confidence *= folder.maps("depth.npz", arrays["confidence"]).astype(np.float32)
    return {"depth": depth, "sky": sky, "confidence": confidence}


def _camera(folder: Folder) -> dict[str, Any]:
    """K, and poses and the up direction in the frame of the clip's first camera when they are given."""
    arrays = folder.load("camera.npz", "K", ("c2w", "up"))
    clip: Clip = folder.clip
    K = arrays["K"]
    K = np.repeat(K[None], len(clip.frames), 0) if K.ndim == 2 else folder.frames("camera.npz", K, 3)
    if K.shape[1:] != (3, 3) or not (K[:, [0, 1], [0, 1]] > 0).all():
        raise ValueError(f"{folder.url}/camera.npz: K must be [3,3] or [S,3,3] in pixels, found {list(K.shape)}")
    view: View = clip.view
    out: dict[str, Any] = {"K": view_intrinsics(K, view).astype(np.float32)}
    if "c2w" in arrays:
        c2w = folder.frames("camera.npz", arrays["c2w"], 3).astype(np.float64)
        R = c2w[:, :3, :3]
        if c2w.shape[1:] != (4, 4) or np.abs(R @ R.swapaxes(1, 2) - np.eye(3)).max() > 1e-3:
            raise ValueError(f"{folder.url}/camera.npz: c2w must be rigid motions [S,4,4], camera to world in metres")
        out["c2w"] = geometry.first_frame_world(c2w).astype(np.float32)
        out["c2w_exact"] = True
        out["world"] = c2w[0]
        if "up" in arrays:
            out["up"] = (R[0].T @ np.asarray(arrays["up"], np.float64)).astype(np.float32)
    return out


def _source(folder: Folder, name: str) -> dict[str, str]:
    """What the sample records: the file's place relative to the root, never a machine's path."""
    return {"precomputed": f"{folder.url.rpartition('/')[2]}/{name}"}
