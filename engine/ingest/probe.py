"""What a container says about its video before a frame is decoded. Runs inside the decoding child."""

from engine.ingest.readers import best_stream
from engine.ingest.reasons import IngestError, Reason

FILM_WIDTH_MM = 36.0  # width of the 35 mm still frame that "35 mm equivalent" focal lengths refer to
FOCAL_TAGS = (
    "com.apple.quicktime.camera.focal_length.35mm_equivalent",  # QuickTime metadata, phones
    "camera.focal_length.35mm_equivalent",
    "FocalLengthIn35mmFilm",  # Exif tag 0xA405, copied by some muxers
)
INDEXED = ("mp4", "mov", "matroska", "webm")  # containers in which decord's seek is exact


def probe(path: str) -> dict:
    """seekable, pixel_aspect, focal_35mm (mm or None), promised (frames, 0 = unknown), codec, pixel_format.

    Raises IngestError (not_a_video, no_video_stream, no_frames).
    """
    import av

    av.logging.set_level(None)
    try:
        container = av.open(path, metadata_errors="replace")
    except FileNotFoundError as error:
        raise IngestError(Reason.VANISHED, f"{path} is not there") from error
    except (PermissionError, OSError) as error:
        if isinstance(error, av.FFmpegError) and not isinstance(error, PermissionError):
            raise IngestError(Reason.NOT_A_VIDEO, f"no demuxer opens it: {error.strerror}") from error
        raise IngestError(Reason.UNREADABLE, str(error)) from error
    except av.FFmpegError as error:
        raise IngestError(Reason.NOT_A_VIDEO, f"no demuxer opens it: {error.strerror}") from error
    with container:
        stream = best_stream(container)
        codec = stream.codec_context
        if codec is None:
            raise IngestError(Reason.NO_FRAMES, "the video stream's codec is unknown")
        aspect = stream.sample_aspect_ratio or codec.sample_aspect_ratio
        names = container.format.name.split(",")
        tags = {**container.metadata, **stream.metadata}
        return {
            "seekable": any(name in INDEXED for name in names),
            "pixel_aspect": float(aspect) if aspect and 0.1 < aspect < 10 else 1.0,
            "focal_35mm": next((_positive(tags[tag]) for tag in FOCAL_TAGS if tag in tags), None),
            # only mp4 and mov count their frames in a table of the file; others guess from the duration
            "promised": stream.frames if "mp4" in names or "mov" in names else 0,
            "codec": codec.name,
            "pixel_format": codec.pix_fmt or "",
        }


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value > 0 else None
