"""Where one shot ends and the next begins, by PySceneDetect's detectors fed with our own frames."""

from collections.abc import Iterable

import cv2
import numpy as np

from engine.ingest.options import ShotOptions


def cuts(frames: Iterable[np.ndarray], options: ShotOptions) -> list[int]:
    """Indices of the first frames of all shots but the first. `frames`: RGB uint8 [H,W,3], every source frame."""
    from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode

    threshold = {"adaptive": "adaptive_threshold", "content": "threshold"}[options.detector]
    detector = {"adaptive": AdaptiveDetector, "content": ContentDetector}[options.detector](
        min_scene_len=options.min_frames, **({threshold: options.threshold} if options.threshold else {})
    )
    found, timecode = [], None
    for i, frame in enumerate(frames):
        # detectors count in frames; the rate only has to be some constant
        timecode = FrameTimecode(i, 30.0)
        found += detector.process_frame(timecode, cv2.cvtColor(_small(frame, options.width), cv2.COLOR_RGB2BGR))
    if timecode is not None:
        found += detector.post_process(timecode)
    return sorted({cut.frame_num for cut in found} - {0})


def _small(frame: np.ndarray, width: int) -> np.ndarray:
    """Every k-th pixel: histograms and differences need no filter, and a good one costs more than the decoding."""
    step = max(1, frame.shape[1] // width)
    return np.ascontiguousarray(frame[::step, ::step])
