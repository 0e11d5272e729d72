"""Sequences of real images with recorded camera poses, in the layouts that public data sets have.

<folder>/*.color.jpg  *.depth.png  *.pose.txt  camera-intrinsics.txt     7-Scenes as TSDF-Fusion packs it, millimetres
<folder>/color/*  depth/*  trajectory.log                                Redwood / Open3D, millimetres, PrimeSense lens
<folder>/rgb/*  depth/*  truth_cam_poses.txt  *.yaml                     TUM frames picked by number, 5000 = 1 m
<folder>/rgb/<seconds>.*  groundtruth.txt                                TUM colour alone
<folder>/NAME.mp4  NAME.txt                                              RealEstate10K clips, poses up to scale
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from engine.geometry.camera import first_frame_world, interpolate_poses, invert, pose
from engine.ingest.tum import CAMERAS
from engine.types import Clip, GeometryEstimate, Tracks, View

NO_DEPTH = 65535  # what Kinect recordings write where there is no value, beside 0


@dataclass(frozen=True)
class Sequence:
    """Images with their true path.

    clip   its K is the camera's calibration; K_source is "metadata", or "prior" where nobody calibrated the colour lens
    depth  float32 [T,H,W] metres, 0 = no value; None = colour alone
    c2w    float64 [T,4,4], frame 0 is the identity; metres, or up to scale where there is no depth
    """

    name: str
    clip: Clip
    depth: np.ndarray | None
    c2w: np.ndarray


def read_sequences(folder: Path) -> list[Sequence]:
    """Every sequence in a folder. ValueError when it has none of the layouts."""
    if next(folder.glob("*.color.jpg"), None):
        return [_seven_scenes(folder)]
    if (folder / "trajectory.log").exists():
        return [_redwood(folder)]
    if (folder / "truth_cam_poses.txt").exists():
        return [_numbered_tum(folder)]
    if (folder / "groundtruth.txt").exists():
        return [_tum_colour(folder)]
    videos = [p for p in sorted(folder.glob("*.mp4")) if p.with_suffix(".txt").exists()]
    if not videos:
        raise ValueError(f"{folder}: none of the layouts of tests/bench/poses.py; expected images with recorded poses")
    return [_real_estate(p) for p in videos]


def sensor(sequence: Sequence) -> tuple[Tracks, GeometryEstimate]:
    """Perception as the depth sensor had it: nobody moves, the sensor's depth, the calibration, no poses."""
    nobody = np.zeros(sequence.depth.shape, bool)
    clip = sequence.clip
    geometry = GeometryEstimate(
        K=np.repeat(clip.K[None], len(nobody), 0).astype(np.float32),
        depth=sequence.depth,
        sky=nobody,
        confidence=(sequence.depth > 0).astype(np.float32),
        K_source=clip.K_source,
    )
    return Tracks(nobody.astype(np.uint8), nobody, ()), geometry


def _seven_scenes(folder: Path) -> Sequence:
    images = sorted(folder.glob("*.color.jpg"))
    c2w = np.stack([np.loadtxt(str(p).replace("color.jpg", "pose.txt")) for p in images])
    depth = _depth(sorted(folder.glob("*.depth.png")), 1e-3)
    # The file holds the depth camera's 585 px; the colour camera was never calibrated, 525 px is the usual guess.
    K = np.array([[525.0, 0, 320], [0, 525, 240], [0, 0, 1]])
    return Sequence(folder.name, _clip(folder.name, _colour(images), 6.0, K, "prior"), depth, first_frame_world(c2w))


def _redwood(folder: Path) -> Sequence:
    images, depths = sorted((folder / "color").iterdir()), sorted((folder / "depth").iterdir())
    rows = (folder / "trajectory.log").read_text().splitlines()
    c2w = np.stack([np.loadtxt(rows[5 * i + 1 : 5 * i + 5]) for i in range(len(images))])
    K = np.array([[525.0, 0, 319.5], [0, 525, 239.5], [0, 0, 1]])
    clip = _clip(folder.name, _colour(images), 30.0, K)
    return Sequence(folder.name, clip, _depth(depths, 1e-3), first_frame_world(c2w))


def _numbered_tum(folder: Path) -> Sequence:
    images, depths = sorted((folder / "rgb").iterdir()), sorted((folder / "depth").iterdir())
    table = np.loadtxt(folder / "truth_cam_poses.txt")[[int(p.stem) for p in images]]
    fx, fy, cx, cy = CAMERAS["freiburg3"][:4]
    K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    fps = 1 / float(np.median(np.diff(table[:, 0])))
    clip = _clip(folder.name, _colour(images), fps, K)
    return Sequence(folder.name, clip, _depth(depths, 1 / 5000), first_frame_world(_quaternions(table)))


def _tum_colour(folder: Path) -> Sequence:
    images = sorted((folder / "rgb").iterdir())
    times = np.array([float(p.stem) for p in images])
    table = np.loadtxt(folder / "groundtruth.txt")
    c2w = interpolate_poses(times, table[:, 0], _quaternions(table))
    fx, fy, cx, cy, *distortion = CAMERAS["freiburg1"]
    K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    frames = np.stack([cv2.undistort(f, K, np.array(distortion)) for f in _colour(images)])
    clip = _clip(folder.name, frames, 1 / float(np.median(np.diff(times))), K)
    return Sequence(folder.name, clip, None, first_frame_world(c2w))


def _real_estate(video: Path) -> Sequence:
    reader, frames = cv2.VideoCapture(str(video)), []
    while (read := reader.read())[0]:
        frames.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    table = np.loadtxt(video.with_suffix(".txt"), skiprows=1)[: len(frames)]
    height, width = frames[0].shape[:2]
    K = np.array([[table[0, 1] * width, 0, width / 2], [0, table[0, 2] * height, height / 2], [0, 0, 1]])
    w2c = np.tile(np.eye(4), (len(table), 1, 1))
    w2c[:, :3] = table[:, 7:].reshape(-1, 3, 4)
    clip = _clip(video.stem, np.stack(frames), reader.get(cv2.CAP_PROP_FPS), K)
    return Sequence(video.stem, clip, None, first_frame_world(invert(w2c)))


def _quaternions(table: np.ndarray) -> np.ndarray:
    """c2w [T,4,4] of rows (time, tx, ty, tz, qx, qy, qz, qw)."""
    return pose(Rotation.from_quat(table[:, 4:8]).as_matrix(), table[:, 1:4])


def _colour(images: list[Path]) -> np.ndarray:
    return np.stack([cv2.cvtColor(cv2.imread(str(p)), cv2.COLOR_BGR2RGB) for p in images])


def _depth(images: list[Path], unit: float) -> np.ndarray:
    raw = np.stack([cv2.imread(str(p), cv2.IMREAD_UNCHANGED) for p in images]).astype(np.float32)
    return np.where(raw == NO_DEPTH, 0, raw) * np.float32(unit)


def _clip(name: str, frames: np.ndarray, fps: float, K: np.ndarray, K_source: str = "metadata") -> Clip:
    count, height, width = frames.shape[:3]
    video = hashlib.sha256(name.encode()).hexdigest()[:12]
    whole = View(height, width, 0.0, 0.0, float(width), float(height), height, width)
    index = np.arange(count)
    return Clip(f"{video}-0000", video, name, frames, fps, index / fps, index, whole, K, K_source)


def uncalibrated(clip: Clip) -> Clip:
    """The clip as a video from anywhere: nobody knows its lens."""
    return replace(clip, K=None, K_source="none")
