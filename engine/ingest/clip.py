"""The two things ingest does with a video: survey it into windows (once, for the plan) and read one window."""

import math
from dataclasses import dataclass

import numpy as np

from engine.geometry.camera import intrinsics
from engine.ingest.cache import VideoCache
from engine.ingest.decoder import DecodeProcess, Decoder, VideoInfo
from engine.ingest.options import ClipOptions, ShotOptions
from engine.ingest.probe import FILM_WIDTH_MM
from engine.ingest.reasons import IngestError, Reason
from engine.ingest.sources import Source, caption_of, current, local_file, pair_of, video_id
from engine.ingest.view import view_for, view_intrinsics
from engine.ingest.windows import Window, source_frames, windows
from engine.types import Clip


@dataclass(frozen=True)
class Survey:
    """A decodable video: content id, the reader that takes it, its clips."""

    video_id: str
    reader: str
    windows: list[Window]


def survey(source: Source, clip: ClipOptions, shots: ShotOptions, process: DecodeProcess) -> Survey:
    """Decode the whole video once, cut it at shots, window it. IngestError says why it has no clips."""
    decode = process.options
    with local_file(source, VideoCache(decode.cache, decode.cache_gb)) as path:
        content = video_id(path)
        video = Decoder(path, process)
        cuts = video.survey(shots)
        info = video.info
    if info.lost and not decode.keep_damaged:
        raise IngestError(
            Reason.TRUNCATED,
            f"{len(info.times)} good frames, {info.lost} missing or damaged "
            f"(decode.keep_damaged=true uses the good ones)",
        )
    found = windows(info.times, cuts, clip)
    if not found:
        need = min(clip.min_frames, clip.frames)
        raise IngestError(
            Reason.TOO_SHORT,
            f"{len(info.times)} frames, {info.times[-1]:.2f} s, {1 + len(cuts)} shots: none holds {need} frames at "
            f"{clip.fps:g} fps (clip.min_frames)",
        )
    return Survey(content, info.reader, found)


def read_clip(
    key: str,
    source: Source,
    reader: str,
    window: Window,
    size: tuple[int, int],
    clip: ClipOptions,
    process: DecodeProcess,
) -> Clip:
    """Decode one window at (height, width) `size`. IngestError when the file is not the one that was surveyed."""
    if current(source.uri) != source:
        raise IngestError(Reason.SOURCE_CHANGED, f"{source.uri} changed after the plan; run again")
    decode = process.options
    with local_file(source, VideoCache(decode.cache, decode.cache_gb)) as path:
        video = Decoder(path, process, (reader,))
        info = video.info
        if window.stop > len(info.times):
            raise IngestError(Reason.SOURCE_CHANGED, f"{len(info.times)} frames, the plan counted {window.stop}")
        indices = source_frames(info.times, window, clip.fps)
        view = view_for(*info.size, *size, info.pixel_aspect)
        frames = video.frames(indices, view)
    K, K_source = source_intrinsics(info, clip)
    return Clip(
        key=key,
        video_id=key.split("-")[0],
        uri=source.uri,
        frames=frames,
        fps=clip.fps,
        times=info.times[indices],
        source_frames=indices,
        view=view,
        K=None if K is None else view_intrinsics(K, view),
        K_source=K_source,
        caption=caption_of(source.uri, clip.caption),
        pair=pair_of(source.uri),
    )


def source_intrinsics(info: VideoInfo, clip: ClipOptions) -> tuple[np.ndarray | None, str]:
    """(K [3,3] in pixels of the upright source, "user"), ("metadata") or (None, "none").

    35 mm equivalents compare diagonals (CIPA DCG-001): f_px = f_35 * diagonal / 43.27 mm, both of the displayed
    image.
    """
    height, width = info.size
    if clip.focal_px is not None:
        focal, origin = clip.focal_px, "user"
    elif clip.fov_deg is not None:
        focal, origin = width / 2 / math.tan(math.radians(clip.fov_deg) / 2), "user"
    elif info.focal_35mm is not None:
        film = math.hypot(FILM_WIDTH_MM, FILM_WIDTH_MM * 2 / 3)
        focal = info.focal_35mm * math.hypot(width * info.pixel_aspect, height) / film / info.pixel_aspect
        origin = "metadata"
    else:
        return None, "none"
    return intrinsics(focal, focal * info.pixel_aspect, width, height), origin
