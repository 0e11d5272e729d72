"""Truth with errors: what MoGe-2, Depth Anything and a tracker would say of a synthetic world, by seeded noise.

The oracle wraps perception that is exact (truth files beside a video, or a rendered view in memory) and spoils its
answers. Every error is a pure function of arrays and a random generator; all options zero and `hide_poses` off = exact.
The generator depends on the seed, the clip's key and the error, so that a clip gets the same errors wherever and
whenever it runs, and one error does not change another.
"""

import zlib
from dataclasses import dataclass, replace

import cv2
import numpy as np

from engine.options import option
from engine.perception import Models
from engine.perception.precomputed import PrecomputedOptions, precomputed
from engine.types import Clip, DepthEstimate, GeometryEstimate, SubjectTrack, Tracks


@dataclass
class OracleOptions:
    root: str = option("", "folder or URL of the truth, one folder per video stem; empty = the folder of the video")
    seed: int = option(0, "seed of all errors; a clip's errors depend on it and on the clip's key")
    log_scale_jitter: float = option(
        0.05, "standard deviation of the log of geometry's depth scale, drawn each frame: MoGe-2's flicker, about 5 %"
    )
    log_scale_bias: float = option(0.0, "log of the scale error that all of geometry's frames share")
    focal_jitter: float = option(0.0, "standard deviation of the log of the focal length, drawn each frame")
    depth_noise: float = option(0.02, "relative standard deviation of geometry's depth, drawn each pixel and frame")
    smooth_noise: float = option(0.03, "relative standard deviation of geometry's smooth depth error, drawn each frame")
    smooth_length: float = option(
        100.0, "pixels at which the correlation of the smooth errors has fallen to 1/e; about 100 in monocular depth"
    )
    edge_bleed: int = option(2, "pixels to either side of a depth edge where near and far blend into flying points")
    sky_depth: float = option(0.0, "metres at which geometry puts the sky as a wall; 0 = the sky has no depth")
    disparity: bool = option(True, "give a Depth model too, as disparity a_t / z + b_t; off = geometry's depth alone")
    disparity_scale: float = option(1.0, "a of the disparity, shared by all frames; unknown to the engine, metres")
    disparity_scale_jitter: float = option(0.05, "standard deviation of the log of a_t, drawn each frame")
    disparity_shift_jitter: float = option(0.02, "standard deviation of b_t in shares of a, drawn each frame, 1/m")
    disparity_noise: float = option(0.01, "relative standard deviation of a/z, drawn each pixel and frame")
    disparity_smooth_noise: float = option(0.02, "relative standard deviation of its smooth error, drawn each frame")
    mask_dilation: int = option(2, "pixels by which every mask is too large; negative = too small")
    mask_dropout: float = option(0.02, "probability that a subject's mask is missing in a frame")
    subject_dropout: float = option(0.0, "probability that a subject is never found")
    hide_poses: bool = option(True, "keep the true camera path to itself, so that it has to be solved")


def exact_options(**changes) -> OracleOptions:
    """Options without any error, the poses told; `changes` set single fields."""
    zero = {name: 0 for name, value in vars(OracleOptions()).items() if isinstance(value, int | float)}
    kept = {"smooth_length": 100.0, "disparity_scale": 1.0, "disparity": True, "hide_poses": False}
    return OracleOptions(**{**zero, **kept, **changes})


def oracle(options: OracleOptions | None = None, exact: Models | None = None) -> Models:
    """The spoiled truth of `exact`; by default that of the truth files beside the video."""
    options = options or OracleOptions()
    exact = exact or precomputed(PrecomputedOptions(root=options.root))
    depth = OracleDepth(options, exact) if options.disparity else None
    return Models(OracleTracker(options, exact), OracleGeometry(options, exact), depth)


class OracleTracker:
    def __init__(self, options: OracleOptions, exact: Models):
        self.options, self.exact = options, exact

    def track(self, clip: Clip) -> Tracks:
        o, tracks = self.options, self.exact.tracker.track(clip)
        labels = drop_masks(tracks.labels, o.mask_dropout, o.subject_dropout, _rng(o, clip, "dropout"))
        labels = grow_masks(labels, o.mask_dilation)
        subjects = []
        for subject in tracks.subjects:
            seen = (labels == subject.label).any((1, 2))
            if seen.any():
                subjects.append(SubjectTrack(subject.label, subject.category, subject.score * seen))
        # Labels are contiguous again when somebody was never found.
        table = np.zeros(256, np.uint8)
        table[[s.label for s in subjects]] = np.arange(1, len(subjects) + 1)
        subjects = [replace(s, label=int(table[s.label])) for s in subjects]
        return Tracks(table[labels], labels > 0, tuple(subjects), {"tracker": {"oracle": f"seed {o.seed}"}})


class OracleGeometry:
    def __init__(self, options: OracleOptions, exact: Models):
        self.options, self.exact = options, exact

    def geometry(self, clip: Clip, tracks: Tracks) -> GeometryEstimate:
        o, truth = self.options, self.exact.geometry.geometry(clip, tracks)
        T = len(clip.frames)
        depth = bleed_edges(truth.depth, o.edge_bleed)
        depth = relative_noise(depth, o.depth_noise, o.smooth_noise, o.smooth_length, _rng(o, clip, "depth"))
        jitter = o.log_scale_bias + o.log_scale_jitter * _rng(o, clip, "scale").standard_normal(T)
        depth *= np.exp(jitter, dtype=np.float32)[:, None, None]
        if o.sky_depth:
            depth[truth.sky] = o.sky_depth
        K = truth.K.copy()
        K[:, [0, 1], [0, 1]] *= np.exp(o.focal_jitter * _rng(o, clip, "focal").standard_normal((T, 1)))
        sigma = np.hypot(o.log_scale_jitter / np.sqrt(T), abs(o.log_scale_bias))
        return GeometryEstimate(
            K=K,
            depth=depth,
            sky=truth.sky,
            confidence=(depth > 0).astype(np.float32),
            c2w=None if o.hide_poses else truth.c2w,
            c2w_exact=truth.c2w_exact and not o.hide_poses,
            log_scale_sigma=float(max(sigma, 1e-3)),
            K_source="estimated" if o.focal_jitter else truth.K_source,
            up=None if o.hide_poses else truth.up,
            world=truth.world,  # where the clip stands in the world of its pair; nothing is solved from it
            models={"geometry": {"oracle": f"seed {o.seed}"}},
        )


class OracleDepth:
    def __init__(self, options: OracleOptions, exact: Models):
        self.options, self.exact = options, exact

    def depth(self, clip: Clip, tracks: Tracks, geometry: GeometryEstimate) -> DepthEstimate:
        o, truth = self.options, self.exact.geometry.geometry(clip, tracks)
        depth = bleed_edges(truth.depth, o.edge_bleed)
        rng = _rng(o, clip, "disparity")
        a = o.disparity_scale * np.exp(o.disparity_scale_jitter * rng.standard_normal(len(depth)))
        b = o.disparity_scale * o.disparity_shift_jitter * rng.standard_normal(len(depth))
        with np.errstate(divide="ignore"):
            inverse = np.where(depth > 0, 1 / depth, 0).astype(np.float32)
        inverse = relative_noise(inverse, o.disparity_noise, o.disparity_smooth_noise, o.smooth_length, rng)
        values = a.astype(np.float32)[:, None, None] * inverse + b.astype(np.float32)[:, None, None]
        # The sky is at disparity 0 for such a model; anything else without depth has no value.
        values[(depth == 0) & ~truth.sky] = np.nan
        return DepthEstimate("disparity", values, {"depth": {"oracle": f"seed {o.seed}"}})


# --- the errors -------------------------------------------------------------------------------------------------------


def smooth_field(height: int, width: int, length: float, rng: np.random.Generator) -> np.ndarray:
    """Gaussian random field float32 [height,width] of mean 0 and variance 1 whose correlation at distance d pixels is
    exp(-(d / length)^2).

    White noise under a Gaussian of standard deviation length / 2 has that correlation. It is drawn on a coarse grid
    (four nodes per standard deviation) and interpolated.
    """
    sigma = length / 2
    step = max(1.0, sigma / 4)
    coarse = sigma / step
    margin = int(np.ceil(4 * coarse)) + 1
    rows, columns = int(np.ceil(height / step)) + 2, int(np.ceil(width / step)) + 2
    white = rng.standard_normal((rows + 2 * margin, columns + 2 * margin)).astype(np.float32)
    kernel = np.exp(-0.5 * (np.arange(-margin, margin + 1) / coarse) ** 2)
    kernel /= np.sqrt(np.square(kernel).sum())  # unit variance of the sum
    field = cv2.sepFilter2D(white, cv2.CV_32F, kernel, kernel)[margin:-margin, margin:-margin]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32) / step, np.arange(height, dtype=np.float32) / step)
    return cv2.remap(field, x.astype(np.float32), y.astype(np.float32), cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def relative_noise(
    values: np.ndarray, white: float, smooth: float, length: float, rng: np.random.Generator
) -> np.ndarray:
    """Positive maps [T,H,W] times exp of independent per-pixel noise (standard deviation `white`) and of a smooth field
    (standard deviation `smooth`, correlation length `length` pixels), both redrawn each frame. 0 stays 0."""
    out = np.array(values, np.float32)
    for frame in out:
        if white:
            error = white * rng.standard_normal(frame.shape, dtype=np.float32)
            frame *= np.exp(error)
        if smooth:
            frame *= np.exp(smooth * smooth_field(frame.shape[0], frame.shape[1], length, rng))
    return out


def bleed_edges(depth: np.ndarray, pixels: int) -> np.ndarray:
    """Depth maps [T,H,W] whose values within `pixels` of a depth edge are the mean of their neighbourhood, as networks
    draw edges. Pixels without depth neither give nor take."""
    if not pixels:
        return np.array(depth, np.float32)
    out, size = np.array(depth, np.float32), (2 * pixels + 1, 2 * pixels + 1)
    square = np.ones(size, np.uint8)
    for frame in out:
        valid = frame > 0
        near = cv2.erode(np.where(valid, frame, np.float32(1e9)), square)
        far = cv2.dilate(frame, square)
        edge = valid & (far > 1.1 * near)  # a tenth of the depth within the window: no slope that matters reaches it
        mean = cv2.blur(frame, size) / np.maximum(cv2.blur(valid.astype(np.float32), size), 1e-6)
        frame[edge] = mean[edge]
    return out


def grow_masks(labels: np.ndarray, pixels: int) -> np.ndarray:
    """Labels [T,H,W] dilated into the background by a disc of `pixels` radius (negative: eroded). Masks that meet keep
    their own pixels; new pixels go to the higher label."""
    if not pixels:
        return labels.copy()
    r = abs(pixels)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1, 2 * r + 1))
    out = labels.copy()
    for frame in out:
        if pixels > 0:
            grown = cv2.dilate(frame, disc)
            frame[frame == 0] = grown[frame == 0]
        else:
            same = cv2.erode(frame, disc) == cv2.dilate(frame, disc)
            frame[~same] = 0
    return out


def drop_masks(labels: np.ndarray, frames: float, subjects: float, rng: np.random.Generator) -> np.ndarray:
    """Labels [T,H,W] where every subject vanishes in each frame with probability `frames`, and altogether with
    probability `subjects`."""
    out = labels.copy()
    N = int(labels.max(initial=0))
    gone = rng.random((N, len(labels))) < frames
    gone |= rng.random((N, 1)) < subjects
    for n, t in zip(*np.nonzero(gone), strict=True):
        out[t][out[t] == n + 1] = 0
    return out


def _rng(options: OracleOptions, clip: Clip, error: str) -> np.random.Generator:
    return np.random.default_rng([options.seed, zlib.crc32(clip.key.encode()), zlib.crc32(error.encode())])
