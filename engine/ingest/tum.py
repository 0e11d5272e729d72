"""RGB-D sequences in the TUM format, with their true camera path: clips to unroll and the truth to compare with.

    <folder>/rgb/*  <folder>/depth/*.png       colour, and registered 16-bit depth (5000 = 1 m, 0 = no value)
    <folder>/rgb.txt  <folder>/depth.txt       optional lists of "timestamp file"; else the file names are timestamps
    <folder>/groundtruth.txt                   "timestamp tx ty tz qx qy qz qw", camera-to-world in metres
    <folder>/camera.txt                        optional "fx fy cx cy [k1 k2 p1 p2 k3]" in pixels

The format and the intrinsics of the three cameras are those of the data set's page (Sturm et al. 2012, "A Benchmark
for the Evaluation of RGB-D SLAM Systems"); the Bonn dynamic sequences (Palazzolo et al. 2019) come the same way.
Colour, depth and poses have their own clocks and are associated by time.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from engine.geometry import camera
from engine.ingest.view import apply_view, view_for, view_intrinsics
from engine.perception import Models
from engine.types import Clip, GeometryEstimate, Tracks

DEPTH_UNITS = 5000  # depth values per metre
APART = 0.02  # seconds between a colour and a depth image of one instant, at most: the published associate.py
GAP = 0.1  # seconds between true poses over which no pose is interpolated; motion capture gives 100 a second

# fx fy cx cy k1 k2 p1 p2 k3, by a word of the folder's name
CAMERAS = {
    "freiburg1": (517.3, 516.5, 318.6, 255.3, 0.2624, -0.9531, -0.0054, 0.0026, 1.1633),
    "freiburg2": (520.9, 521.0, 325.1, 249.7, 0.2312, -0.7849, -0.0033, -0.0001, 0.9172),
    "freiburg3": (535.4, 539.2, 320.1, 247.6, 0, 0, 0, 0, 0),
    "rgbd_bonn": (542.822841, 542.576870, 315.593520, 237.756098, 0.039903, -0.099343, -0.000730, -0.000144, 0),
}


class TumError(ValueError):
    """A folder that is not a TUM sequence, or a window that it does not hold."""


@dataclass(frozen=True)
class TumSequence:
    """Associated frames: times float64 [S] of the colour images, their files, the true poses.

    K float64 [3,3] in pixels of the images, distortion [5] (OpenCV order), c2w float64 [S,4,4] in the data set's world.
    """

    folder: Path
    times: np.ndarray
    rgb: tuple[Path, ...]
    depth: tuple[Path, ...]
    K: np.ndarray
    distortion: np.ndarray
    c2w: np.ndarray


@dataclass(frozen=True)
class SensorTruth:
    """What the sensor and the motion capture knew of one clip.

    depth float32 [T,H,W] metres, 0 = no value; K float32 [T,3,3]; c2w float32 [T,4,4] in the first camera's frame.
    """

    depth: np.ndarray
    K: np.ndarray
    c2w: np.ndarray

    def models(self, labels: np.ndarray | None = None) -> Models:
        """Perception that answers with the sensor's depth and no poses; `labels` uint8 [T,H,W] masks what moves."""
        adapter = _Sensor(self, labels if labels is not None else np.zeros(self.depth.shape, np.uint8))
        return Models(adapter, adapter)


def read_tum(folder: Path | str) -> TumSequence:
    """The sequence in a folder. TumError names the file that is absent or the association that is empty."""
    folder = Path(folder)
    colour, depth, poses = _images(folder, "rgb"), _images(folder, "depth"), _poses(folder)
    pairs = associate(np.array([t for t, _ in colour]), np.array([t for t, _ in depth]), APART)
    times = np.array([colour[i][0] for i, _ in pairs])
    known = _between(poses[0], times)
    if not known.any():
        raise TumError(
            f"{folder}: {len(colour)} colour and {len(depth)} depth images make {len(pairs)} pairs within {APART} s, "
            f"and none lies between true poses "
            f"(colour {_span(np.array([t for t, _ in colour]))}, poses {_span(poses[0])})"
        )
    kept = [pair for pair, ok in zip(pairs, known, strict=True) if ok]
    K, distortion = _camera(folder)
    return TumSequence(
        folder=folder,
        times=times[known],
        rgb=tuple(colour[i][1] for i, _ in kept),
        depth=tuple(depth[j][1] for _, j in kept),
        K=K,
        distortion=distortion,
        c2w=camera.interpolate_poses(times[known], *poses),
    )


def tum_clip(
    sequence: TumSequence, size: tuple[int, int], frames: int = 81, fps: float = 15.0, start: float = 0.0
) -> tuple[Clip, SensorTruth]:
    """A clip of (height, width) `size` and its truth, `start` seconds into the sequence, by time at `fps`.

    T is the largest 1 + 4k that fits, at most `frames`. Lens distortion is taken out. TumError when fewer than 5 fit.
    """
    wanted = sequence.times[0] + start + np.arange(frames) / fps
    wanted = wanted[wanted <= sequence.times[-1] + 0.5 / fps]
    T = (len(wanted) - 1) // 4 * 4 + 1
    if T < 5:
        raise TumError(
            f"{sequence.folder}: {sequence.times[-1] - sequence.times[0] - start:.2f} s are left after {start} s, "
            f"which hold {len(wanted)} frames at {fps} fps; at least 5 are needed"
        )
    index = np.abs(sequence.times[None] - wanted[:T, None]).argmin(1)
    first = _read(sequence.rgb[index[0]])
    view = view_for(*first.shape[:2], *size)
    at_zero = sequence.K - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])  # OpenCV counts pixel centres from 0
    maps = cv2.initUndistortRectifyMap(at_zero, sequence.distortion, None, at_zero, first.shape[1::-1], cv2.CV_32FC1)
    images, depths = [], []
    for i in index:
        colour = cv2.remap(_read(sequence.rgb[i]), *maps, cv2.INTER_LINEAR)
        images.append(apply_view(cv2.cvtColor(colour, cv2.COLOR_BGR2RGB), view))
        depth = cv2.remap(_read(sequence.depth[i]), *maps, cv2.INTER_NEAREST)
        depths.append(apply_view(depth, view, "nearest").astype(np.float32) / DEPTH_UNITS)
    K = view_intrinsics(sequence.K, view)
    name = hashlib.sha256(str(sequence.folder.name).encode()).hexdigest()[:12]
    clip = Clip(
        key=f"{name}-{round(start * 10):04d}",
        video_id=name,
        uri=str(sequence.folder),
        frames=np.stack(images),
        fps=fps,
        times=sequence.times[index] - sequence.times[0],
        source_frames=index.astype(np.int64),
        view=view,
        K=K,
        K_source="metadata",
    )
    path = camera.first_frame_world(sequence.c2w[index]).astype(np.float32)
    return clip, SensorTruth(np.stack(depths), np.repeat(K[None].astype(np.float32), T, 0), path)


def associate(a: np.ndarray, b: np.ndarray, apart: float) -> list[tuple[int, int]]:
    """Pairs (i, j) of times a[i], b[j] less than `apart` seconds apart, nearest first, each used once; sorted by i."""
    i, j = np.nonzero(np.abs(a[:, None] - b[None]) < apart) if len(a) * len(b) < 10**7 else _near(a, b, apart)
    order = np.argsort(np.abs(a[i] - b[j]), kind="stable")
    used_a, used_b, pairs = set(), set(), []
    for x, y in zip(i[order].tolist(), j[order].tolist(), strict=True):
        if x not in used_a and y not in used_b:
            used_a.add(x)
            used_b.add(y)
            pairs.append((x, y))
    return sorted(pairs)


def _near(a: np.ndarray, b: np.ndarray, apart: float) -> tuple[np.ndarray, np.ndarray]:
    """Index pairs within `apart`, for long lists: a window of sorted b around every a."""
    order = np.argsort(b)
    low, high = (np.searchsorted(b[order], a + s * apart, side) for s, side in ((-1, "right"), (1, "left")))
    i = np.repeat(np.arange(len(a)), high - low)
    j = np.concatenate([order[l:h] for l, h in zip(low, high, strict=True)]) if len(i) else np.zeros(0, int)
    return i, j


def _images(folder: Path, kind: str) -> list[tuple[float, Path]]:
    listing = folder / f"{kind}.txt"
    try:
        if listing.is_file():
            rows = [line.split() for line in listing.read_text().splitlines() if line.strip() and line[0] != "#"]
            found = [(float(time), folder / name) for time, name in rows]
        else:
            found = [(float(path.stem), path) for path in (folder / kind).glob("*.*")]
    except ValueError as error:
        raise TumError(f"{folder}: {kind} images need timestamps as names or in {kind}.txt ({error})") from error
    if not found:
        raise TumError(f"{folder}: no images in {kind}/; a TUM sequence has rgb/, depth/ and groundtruth.txt")
    return sorted(found)


def _poses(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    path = folder / "groundtruth.txt"
    if not path.is_file():
        raise TumError(f"{folder}: no groundtruth.txt; a TUM sequence has rgb/, depth/ and groundtruth.txt")
    rows = np.loadtxt(path, comments="#", ndmin=2)
    if rows.shape[1] != 8:
        raise TumError(f"{path}: rows of 8 numbers (time, position, quaternion) were expected, found {rows.shape[1]}")
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    rows = rows[np.concatenate([[True], np.diff(rows[:, 0]) > 0])]
    return rows[:, 0], camera.pose(Rotation.from_quat(rows[:, 4:]).as_matrix(), rows[:, 1:4])


def _camera(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    path = folder / "camera.txt"
    if path.is_file():
        values = np.loadtxt(path, comments="#").ravel()
    else:
        name = next((word for word in CAMERAS if word in str(folder.resolve())), None)
        if name is None:
            raise TumError(
                f"{folder}: whose camera? Name the folder after the data set ({', '.join(CAMERAS)}), or write "
                "'fx fy cx cy [k1 k2 p1 p2 k3]' to camera.txt in it"
            )
        values = np.array(CAMERAS[name])
    if len(values) not in (4, 9):
        raise TumError(f"{path}: 4 or 9 numbers were expected, found {len(values)}")
    fx, fy, cx, cy = values[:4]
    # the data set counts pixel centres from 0; ours lie at +0.5
    K = np.array([[fx, 0, cx + 0.5], [0, fy, cy + 0.5], [0, 0, 1]], np.float64)
    return K, np.concatenate([values[4:], np.zeros(9 - len(values))])


def _between(known: np.ndarray, times: np.ndarray) -> np.ndarray:
    """bool: a known time is less than APART away, or the time lies between two that are at most GAP apart."""
    if not len(known):
        return np.zeros(len(times), bool)
    after = np.clip(np.searchsorted(known, times), 0, len(known) - 1)
    before = np.maximum(after - 1, 0)
    near = np.minimum(np.abs(known[after] - times), np.abs(known[before] - times)) < APART
    inside = (times >= known[0]) & (times <= known[-1])
    return near | (inside & (known[after] - known[before] <= GAP))


def _span(times: np.ndarray) -> str:
    return f"{times.min():.3f} to {times.max():.3f} s" if len(times) else "none"


def _read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise TumError(f"{path}: cannot be read as an image")
    return image


@dataclass(frozen=True)
class _Sensor:
    truth: SensorTruth
    labels: np.ndarray

    def track(self, clip: Clip) -> Tracks:
        return Tracks(np.zeros_like(self.labels), self.labels > 0, ())

    def geometry(self, clip: Clip, tracks: Tracks) -> GeometryEstimate:
        seen = self.truth.depth > 0
        return GeometryEstimate(
            K=self.truth.K,
            depth=self.truth.depth,
            sky=np.zeros(seen.shape, bool),
            confidence=seen.astype(np.float32),
            log_scale_sigma=0.01,  # a structured-light sensor: about 1 % at 2 m (Khoshelham and Elberink 2012)
            K_source="metadata",
            models={"sensor": {"version": "RGB-D, TUM format"}},
        )
