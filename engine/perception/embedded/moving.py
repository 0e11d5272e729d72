"""Residual motion: pixels next to people that do not move with the background."""

from dataclasses import dataclass

import cv2
import numpy as np

from engine.options import option


@dataclass
class MovingOptions:
    grow: float = option(0.008, "margin around people that is never trusted as static, as a share of the image's width")


def find_moving(
    labels: np.ndarray, others: np.ndarray, flows: tuple[np.ndarray, np.ndarray], factor: int, options: MovingOptions
) -> tuple[np.ndarray, np.ndarray]:
    """(labels, dynamic)."""
    r = max(1, round(options.grow * labels.shape[2]))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1, 2 * r + 1))
    people = (labels > 0) | others
    return labels, np.stack([cv2.dilate(p.astype(np.uint8), kernel) > 0 for p in people])
