"""BlazePose on LiteRT: people, their landmarks, a segmentation and world landmarks in metres.

The two networks lie as .tflite files in the `mediapipe` wheel (Apache-2.0); only the files are read, the
package is never imported. Input ranges, anchors and the region of interest follow the graphs that ship with
them (`pose_detection_cpu.pbtxt`, `pose_landmark_by_roi_cpu.pbtxt`); Bazarevsky et al. 2020, "BlazePose".
"""

import hashlib
import importlib.metadata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

PACKAGE = "mediapipe"
INSTALL = "pip install --no-deps mediapipe==0.10.21"
DETECTOR = "mediapipe/modules/pose_detection/pose_detection.tflite"
LANDMARKER = "mediapipe/modules/pose_landmark/pose_landmark_full.tflite"

NOSE, LEFT_SHOULDER, RIGHT_SHOULDER, LEFT_HIP, RIGHT_HIP = 0, 11, 12, 23, 24
LEFT_KNEE, RIGHT_KNEE, LEFT_ANKLE, RIGHT_ANKLE = 25, 26, 27, 28
FEET = (27, 28, 29, 30, 31, 32)  # ankles, heels, toes
JOINTS = 33
CENTRE, RIM = 33, 34  # auxiliary landmarks: hip centre and a point on the circle around the whole body
ROI_SCALE = 2.5  # region edge over |centre - rim|: 2 (diameter) x 1.25, from the released graph


@dataclass(frozen=True)
class Roi:
    """A square region of the image: centre (x, y) and edge in pixels; `angle` (radians) turns the upright body."""

    x: float
    y: float
    size: float
    angle: float

    @classmethod
    def around(cls, centre: np.ndarray, rim: np.ndarray) -> "Roi":
        """The region of a body with hip centre `centre` [2] whose head points towards `rim` [2]."""
        d = np.asarray(rim, float) - centre
        return cls(float(centre[0]), float(centre[1]), ROI_SCALE * float(np.hypot(*d)), float(np.arctan2(d[0], -d[1])))

    def to_image(self, side: int) -> np.ndarray:
        """Affine [2,3] from crop coordinates (continuous, 0..side) to image coordinates (continuous pixels)."""
        c, s, k = np.cos(self.angle), np.sin(self.angle), self.size / side
        A = k * np.array([[c, -s], [s, c]])
        return np.column_stack([A, np.array([self.x, self.y]) - A @ [side / 2, side / 2]])


@dataclass(frozen=True)
class Body:
    """One person in one frame.

    presence     float in [0,1]
    points       float32 [35,2] image landmarks in pixels (33 joints, then CENTRE and RIM)
    visibility   float32 [33] in [0,1]
    world        float32 [33,3] metres, hip centre at the origin, axes of the camera (x right, y down, z forward)
    probability  float16 [256,256] segmentation in the crop of `roi`
    """

    roi: Roi
    presence: float
    points: np.ndarray
    visibility: np.ndarray
    world: np.ndarray
    probability: np.ndarray

    @property
    def next_roi(self) -> Roi:
        """Where the body's region will be looked for next."""
        return Roi.around(self.points[CENTRE], self.points[RIM])

    def clarity(self, size: tuple[int, int]) -> float:
        """Mean visibility of the joints that lie inside an image of `size` (width, height); 0 when none does."""
        inside = ((self.points[:JOINTS] >= 0) & (self.points[:JOINTS] < size)).all(1)
        return float(self.visibility[inside].mean()) if inside.any() else 0.0

    def paste(self, height: int, width: int, scale: float = 1.0) -> tuple[np.ndarray, tuple[slice, slice]]:
        """Foreground probability float32 [h,w] in the part of the image that the region covers, and that part.

        `height` and `width` are the image's; with `scale` < 1 the answer is for an image that much smaller.
        """
        side = self.probability.shape[0]
        M = self.roi.to_image(side)
        corners = scale * (M[:, :2] @ np.array([[0, side, 0, side], [0, 0, side, side]]) + M[:, 2:])
        h, w = round(height * scale), round(width * scale)
        x0, y0 = np.clip(np.floor(corners.min(1)), 0, (w, h)).astype(int)
        x1, y1 = np.clip(np.ceil(corners.max(1)), 0, (w, h)).astype(int)
        if x1 <= x0 or y1 <= y0:
            return np.zeros((0, 0), np.float32), (slice(0, 0), slice(0, 0))
        A = scale * M[:, :2]
        shift = scale * M[:, 2] + A @ [0.5, 0.5] - 0.5 - (x0, y0)  # pixel centres lie at +0.5
        out = cv2.warpAffine(
            self.probability.astype(np.float32), np.column_stack([A, shift]), (int(x1 - x0), int(y1 - y0))
        )
        return out, (slice(int(y0), int(y1)), slice(int(x0), int(x1)))


class PoseNet:
    """The two networks. Not thread-safe: one per worker. Runs on one CPU thread, so equal inputs give equal outputs."""

    def __init__(self) -> None:
        self._files = {"blazepose_detector": model_file(DETECTOR), "blazepose_landmarker": model_file(LANDMARKER)}
        self._detector = _Network(self._files["blazepose_detector"])
        self._landmarker = _Network(self._files["blazepose_landmarker"])

    @cached_property
    def models(self) -> dict[str, dict[str, str]]:
        """Name -> version, sha256 and licence of the weights, for the sample's meta.json."""
        version = importlib.metadata.version(PACKAGE)
        return {
            name: {
                "version": f"{PACKAGE} {version}",
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "licence": "Apache-2.0",
            }
            for name, path in self._files.items()
        }

    def detect(self, image: np.ndarray, tiles: list[tuple[int, int, int]], threshold: float) -> list[tuple[Roi, float]]:
        """Regions of people with their scores, best first.

        image  uint8 [H,W,3] RGB
        tiles  squares (x, y, side) in pixels to look at; a square may stick out of the image
        """
        found = []
        for x, y, side in tiles:
            scores, points = self._detect_square(_cut_square(image, x, y, side, 224))
            for i in np.flatnonzero(scores > threshold):
                centre, rim = points[i] * side + (x, y)
                roi = Roi.around(centre, rim)
                if roi.size > 8:  # a smaller region than 8 pixels holds nothing to segment
                    found.append((roi, float(scores[i])))
        found.sort(key=lambda f: -f[1])
        return _suppress(found)

    def _detect_square(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores [2254] and (centre, rim) points [2254,2,2] in units of the square's side."""
        raw, logits = self._detector.run(image.astype(np.float32) / 127.5 - 1)
        scores = _sigmoid(logits[0, :, 0])
        points = raw[0, :, 4:8].reshape(-1, 2, 2) / 224 + _anchors()[:, None]
        return scores, points

    def landmarks(self, image: np.ndarray, roi: Roi) -> Body:
        """The body in a region of an image (uint8 [H,W,3] RGB)."""
        M = roi.to_image(256)
        M_index = M.copy()
        M_index[:, 2] += M[:, :2] @ [0.5, 0.5] - 0.5
        crop = cv2.warpAffine(image, M_index, (256, 256), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        image_points, presence, segmentation, _, world = self._landmarker.run(crop.astype(np.float32) / 255)
        raw = image_points.reshape(39, 5)
        points = raw[:35, :2] @ M[:, :2].T + M[:, 2]
        turn = np.eye(3)
        turn[:2, :2] = M[:, :2] * 256 / roi.size
        return Body(
            roi=roi,
            presence=float(presence[0, 0]),
            points=points.astype(np.float32),
            visibility=_sigmoid(raw[:JOINTS, 3]),
            world=(world.reshape(39, 3)[:JOINTS] @ turn.T).astype(np.float32),
            probability=_sigmoid(segmentation[0, :, :, 0]).astype(np.float16),
        )


def model_file(name: str) -> Path:
    """Path of a model file of the installed `mediapipe` distribution, found without importing it."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        raise FileNotFoundError(
            f"embedded perception needs {name} from the {PACKAGE} wheel, which is not installed. Run: {INSTALL}"
        ) from None
    path = next((Path(f.locate()) for f in files if str(f) == name), None)
    if path is None or not path.is_file():
        raise FileNotFoundError(f"the installed {PACKAGE} wheel has no {name}. Run: {INSTALL}")
    return path


class _Network:
    def __init__(self, path: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self._net = Interpreter(str(path), num_threads=1)
        self._net.allocate_tensors()
        self._input = self._net.get_input_details()[0]["index"]
        self._outputs = [d["index"] for d in self._net.get_output_details()]

    def run(self, image: np.ndarray) -> list[np.ndarray]:
        self._net.set_tensor(self._input, image[None])
        self._net.invoke()
        return [self._net.get_tensor(i) for i in self._outputs]


def _anchors() -> np.ndarray:
    """Anchor centres float32 [2254,2]: strides 8 and 16 with 2 anchors a cell, stride 32 with 6."""
    grids = []
    for cells, repeat in ((28, 2), (14, 2), (7, 6)):
        v, u = np.mgrid[0:cells, 0:cells]
        grids.append(np.repeat((np.stack([u, v], -1).reshape(-1, 2) + 0.5) / cells, repeat, 0))
    return np.concatenate(grids).astype(np.float32)


def _cut_square(image: np.ndarray, x: int, y: int, side: int, out: int) -> np.ndarray:
    height, width = image.shape[:2]
    part = image[max(y, 0) : y + side, max(x, 0) : x + side]
    top, left = max(-y, 0), max(-x, 0)
    bottom, right = max(y + side - height, 0), max(x + side - width, 0)
    if top or left or bottom or right:
        part = cv2.copyMakeBorder(part, top, bottom, left, right, cv2.BORDER_CONSTANT)
    return cv2.resize(part, (out, out), interpolation=cv2.INTER_AREA if side > out else cv2.INTER_LINEAR)


def _suppress(found: list[tuple[Roi, float]], distance: float = 0.15, ratio: float = 1.6) -> list[tuple[Roi, float]]:
    """Keep the best of regions whose centres lie within `distance` of the region's edge and are of like size."""
    kept: list[tuple[Roi, float]] = []
    for roi, score in found:
        clash = any(
            np.hypot(roi.x - k.x, roi.y - k.y) < distance * max(roi.size, k.size)
            and max(roi.size, k.size) < ratio * min(roi.size, k.size)
            for k, _ in kept
        )
        if not clash:
            kept.append((roi, score))
    return kept


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return (1 / (1 + np.exp(-np.clip(x, -60, 60)))).astype(np.float32)
