"""Dense optical flow between neighbouring frames, at reduced size, for tracking and for residual motion."""

import itertools

import cv2
import numpy as np


def shrink(frames: np.ndarray, factor: float) -> np.ndarray:
    """Frames [T,H,W,...] resized by 1/factor with area averaging (size rounded to the nearest pixel)."""
    height, width = round(frames.shape[1] / factor), round(frames.shape[2] / factor)
    return np.stack([cv2.resize(f, (width, height), interpolation=cv2.INTER_AREA) for f in frames])


def neighbour_flow(gray: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Forward flow t -> t+1 and backward flow t+1 -> t, float16 [T-1,h,w,2] in pixels of `gray` (uint8 [T,h,w]).

    DIS flow (Kroeger et al. 2016) with OpenCV's medium preset: about 10 ms a pair at 240x416.
    """
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    forward = [dis.calc(a, b, None).astype(np.float16) for a, b in itertools.pairwise(gray)]
    backward = [dis.calc(b, a, None).astype(np.float16) for a, b in itertools.pairwise(gray)]
    empty = np.zeros((0, *gray.shape[1:], 2), np.float16)
    return (np.stack(forward), np.stack(backward)) if forward else (empty, empty)


def sample(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Nearest values [N,...] of a field [h,w,...] at continuous points [N,2]; points outside take the border."""
    x = np.clip(np.floor(points[:, 0]), 0, field.shape[1] - 1).astype(int)
    y = np.clip(np.floor(points[:, 1]), 0, field.shape[0] - 1).astype(int)
    return field[y, x]


def pull(image: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """`image` [h,w] seen through `flow` [h,w,2]: out(x) = image(x + flow(x)), 0 outside."""
    h, w = image.shape[:2]
    v, u = np.mgrid[0:h, 0:w].astype(np.float32)
    return cv2.remap(image, u + flow[..., 0].astype(np.float32), v + flow[..., 1].astype(np.float32), cv2.INTER_LINEAR)
