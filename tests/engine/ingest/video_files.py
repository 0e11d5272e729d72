"""Small video files whose every frame tells its number: a bar code of 8 blocks along the top.

The code is a Gray code, so that neighbouring frames differ in one block and look like no change of shot.
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 8


def numbered(i: int, height: int = 96, width: int = 160, tint: tuple[int, int, int] = (90, 90, 90)) -> np.ndarray:
    """uint8 RGB frame: blocks of the top third are the bits of the Gray code of i, the rest is a textured tint."""
    rng = np.random.default_rng(5)
    frame = np.clip(rng.integers(-30, 30, (height, width, 1)) + np.array(tint), 0, 255).astype(np.uint8)
    edges = np.linspace(0, width, BITS + 1).astype(int)
    for bit in range(BITS):
        frame[: height // 3, edges[bit] : edges[bit + 1]] = 235 if (i ^ i >> 1) >> bit & 1 else 16
    return frame


def number_of(frame: np.ndarray) -> int:
    """The number that `numbered` wrote, read from a decoded frame of any size."""
    height, width = frame.shape[:2]
    centres = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    rows = slice(height // 12, height // 4)
    gray = sum(int(frame[rows, c - 2 : c + 2].mean() > 126) << bit for bit, c in enumerate(centres))
    number = 0
    while gray:
        number, gray = number ^ gray, gray >> 1
    return number


def write_video(
    path: Path,
    frames: list[np.ndarray],
    times: list[Fraction] | None = None,
    fps: int = 16,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict | None = None,
) -> Path:
    """Encode RGB frames at presentation times in seconds (default: i / fps)."""
    height, width = frames[0].shape[:2]
    index_first = {"movflags": "faststart"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=index_first) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {"g": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.thread_count = 1
        stream.time_base = stream.codec_context.time_base = Fraction(1, 48000 if times else fps)
        for i, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)
            frame.time_base = stream.codec_context.time_base
            frame.pts = round((times[i] if times else Fraction(i, fps)) / frame.time_base)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn(path: Path, degrees: int) -> Path:
    """Write a rotation into an mp4's track header by hand (display matrix of ISO 14496-12, 8.3.2)."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4
    at += 4 + (32 if data[at] else 20) + 16  # version and flags, times and ids, then reserved, layer, volume
    one = 1 << 16
    turned = {90: (0, one, -one, 0), 180: (-one, 0, 0, -one), 270: (0, -one, one, 0)}[degrees]
    a, b, c, d = turned
    for i, value in enumerate((a, b, 0, c, d, 0, 0, 0, 1 << 30)):
        data[at + 4 * i : at + 4 * i + 4] = int(value).to_bytes(4, "big", signed=True)
    path.write_bytes(data)
    return path


def write_audio(path: Path) -> Path:
    """A second of sound without a picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
