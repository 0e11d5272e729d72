"""Values to bytes and back, one codec per kind of member (`shards.schema`). Equal values give equal bytes.

    video    uint8 [T,H,W,3] RGB           h264 mp4, yuv420p BT.601 limited range; H and W even; lossy
    depth16  uint16 [T,H,W]                FFV1 gray16le in mkv; lossless
    npz      {name: array}                 zip of .npy that np.load reads with allow_pickle=False
    rgba     uint8 [h,w,4]                 png
    json     dict                          sorted keys, utf-8, no NaN
    text     str                           utf-8

`encode` and `decode` pick the codec by the member's name; a name that schema 1 does not know is refused.
"""

import contextlib
import io
import json
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import cv2
import numpy as np
from av.video.reformatter import ColorRange
from PIL import Image

from shards import schema

CRF = 18  # x264's visually lossless mark
# One thread: x264's and FFV1's output depends on the number of threads. cpu-independent: without it x264's macroblock
# tree takes another path per CPU type, and in some builds reads uninitialised memory: equal frames gave other bytes.
# "veryfast" takes less than half of "medium"'s time for no more bytes at equal crf on real walking clips.
X264 = {"crf": str(CRF), "preset": "veryfast", "threads": "1", "x264-params": "cpu-independent=1"}
FFV1 = {"level": "3", "slices": "4", "slicecrc": "1", "threads": "1"}
ZLIB_LEVEL = 1  # level 6 costs 4 to 8 times the CPU for 5 to 10 % fewer bytes on depth codes and clouds
DAMAGED = (
    av.FFmpegError, zipfile.BadZipFile, zlib.error, OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError,
    SyntaxError, IndexError, KeyError,  # Pillow raises SyntaxError over a broken PNG
)  # fmt: skip
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can hold


def encode(name: str, value: Any, *, fps: float = 0) -> bytes:
    """The member's bytes. `fps` is used by video and depth16. ValueError names the member and what is wrong."""
    return _codec(name)[0](name, value, fps)


def decode(name: str, data: bytes) -> Any:
    """The member's value (see the table above). Raises ValueError when the bytes are not what `name` promises."""
    with damage_named(name):
        return _codec(name)[1](data)


@contextlib.contextmanager
def damage_named(name: str) -> Iterator[None]:
    """Whatever a library raises over damaged bytes becomes a ValueError that names the member."""
    try:
        yield
    except DAMAGED as error:
        raise ValueError(f"{name}: damaged: {type(error).__name__}: {error}") from error


def array_headers(name: str, data: bytes) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """dtype and shape of every array of an .npz member, without inflating the arrays."""
    out = {}
    with damage_named(name), zipfile.ZipFile(io.BytesIO(data)) as archive:
        for info in archive.infolist():
            with archive.open(info) as file:
                major = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if major == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
                out[info.filename.removesuffix(".npy")] = (dtype, shape)
    return out


def _codec(name: str) -> tuple[Callable[[str, Any, float], bytes], Callable[[bytes], Any]]:
    member = schema.member(name)
    if member is None:
        raise ValueError(f"{name!r} is no member of schema {schema.SCHEMA_VERSION}; see shards/schema.py")
    return CODECS[member.kind]


# ---------------------------------------------------------------------------------------------- video, depth16


def _encode_video(name: str, frames: np.ndarray, fps: float) -> bytes:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"{name}: expected uint8 [T,H,W,3], found {frames.dtype} {list(frames.shape)}")
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ValueError(f"{name}: yuv420p needs even sizes, found {frames.shape[1]}x{frames.shape[2]}; crop or resize")

    # OpenCV's fixed-point BT.601 both ways: equal on every CPU and unbiased (swscale's bit-exact YUV to RGB is 2 low).
    def picture(frame: np.ndarray) -> av.VideoFrame:
        yuv = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2YUV_I420)
        return av.VideoFrame.from_ndarray(yuv.astype(np.uint8, copy=False), format="yuv420p")

    pictures = map(picture, frames)
    return _mux("mp4", "libx264", "yuv420p", X264, pictures, frames.shape[1:3], _rate(name, fps))


def _encode_depth16(name: str, codes: np.ndarray, fps: float) -> bytes:
    if codes.dtype != np.uint16 or codes.ndim != 3 or not len(codes):
        raise ValueError(f"{name}: expected uint16 [T,H,W], found {codes.dtype} {list(codes.shape)}")
    frames = (av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="gray16le") for frame in codes)
    return _mux("matroska", "ffv1", "gray16le", FFV1, frames, codes.shape[1:3], _rate(name, fps))


def _mux(
    container: str,
    codec: str,
    pixels: str,
    options: dict[str, str],
    frames: Iterable[av.VideoFrame],
    size: tuple[int, ...],
    rate: Fraction,
) -> bytes:
    # bitexact: no encoder version, no random segment ids. faststart: the index comes first, so players can stream;
    # it reads the file back, hence a file and not a buffer.
    flags = {"fflags": "+bitexact"} | ({"movflags": "+faststart"} if container == "mp4" else {})
    with tempfile.TemporaryDirectory(prefix="metaworld-") as folder:
        path = Path(folder) / "video"
        with av.open(str(path), "w", format=container, options=flags) as out:
            stream = cast(av.VideoStream, out.add_stream(codec, rate=rate, options=options))
            stream.height, stream.width, stream.pix_fmt = size[0], size[1], pixels
            stream.codec_context.flags |= av.codec.context.Flags.bitexact
            stream.codec_context.thread_count = 1
            if codec == "libx264":
                stream.codec_context.colorspace = 6  # SMPTE 170M, the YCbCr matrix of BT.601
                stream.codec_context.color_range = ColorRange.MPEG
            for i, frame in enumerate(frames):
                frame.pts, frame.time_base = i, 1 / rate
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
        return path.read_bytes()


def _decode_video(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        frames = [cv2.cvtColor(f.to_ndarray(), cv2.COLOR_YUV2RGB_I420) for f in container.decode(stream)]
    if not frames:
        raise ValueError("no frame in the video")
    return np.stack(frames)


def _decode_depth16(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        return np.stack([frame.to_ndarray() for frame in container.decode(stream)])


def _rate(name: str, fps: float) -> Fraction:
    if not fps > 0:
        raise ValueError(f"{name}: fps must be positive, found {fps}")
    return Fraction(fps).limit_denominator(1001)


# ------------------------------------------------------------------------------------------------ npz, png, json


def _encode_npz(name: str, arrays: dict[str, np.ndarray], fps: float) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for key in sorted(arrays):
            array = np.asarray(arrays[key])
            if array.dtype.hasobject:
                raise ValueError(f"{name}: array {key!r} holds Python objects; nothing is pickled")
            info = zipfile.ZipInfo(f"{key}.npy", ZIP_DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            npy = io.BytesIO()
            np.lib.format.write_array(npy, np.asarray(array, order="C"), allow_pickle=False)
            archive.writestr(info, npy.getbuffer(), compresslevel=ZLIB_LEVEL)
    return sink.getvalue()


def _decode_npz(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}


def _encode_rgba(name: str, image: np.ndarray, fps: float) -> bytes:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 4 or not image.size:
        raise ValueError(f"{name}: expected uint8 [h,w,4], found {image.dtype} {list(image.shape)}")
    sink = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(sink, "PNG", compress_level=6)
    return sink.getvalue()


def _decode_rgba(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGBA"))


def _encode_json(name: str, value: Any, fps: float) -> bytes:
    try:
        return (json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: not plain JSON: {error}") from error


CODECS: dict[str, tuple[Callable[[str, Any, float], bytes], Callable[[bytes], Any]]] = {
    "video": (_encode_video, _decode_video),
    "depth16": (_encode_depth16, _decode_depth16),
    "npz": (_encode_npz, _decode_npz),
    "rgba": (_encode_rgba, _decode_rgba),
    "json": (_encode_json, lambda data: json.loads(data)),
    "text": (lambda name, value, fps: value.encode(), lambda data: data.decode()),
}
