"""Why a video or a clip is not in the shards: the short list, one sentence each, and the error that carries it."""

from enum import Enum


class Reason(Enum):
    """The value is the name in `_fail/<unit>.json`, the report and the events; `doc` says what it means."""

    NOT_A_VIDEO = ("not_a_video", "no demuxer recognises the file: text, an archive, a broken header")
    NO_VIDEO_STREAM = ("no_video_stream", "a media file without a moving picture: audio only, or only cover art")
    NO_FRAMES = (
        "no_frames",
        "no frame of the video stream decodes: empty track, unknown codec, encrypted",
    )
    TRUNCATED = (
        "truncated",
        "fewer frames decode than the file promises, or damaged frames; decode.keep_damaged=true keeps the good part",
    )
    TOO_SHORT = ("too_short", "no shot is as long as clip.min_frames at clip.fps")
    BAD_TIMESTAMPS = ("bad_timestamps", "no usable presentation times and no usable frame rate to count by")
    UNREADABLE = ("unreadable", "the storage or both decoders failed in a way none of the other reasons names")
    TIMEOUT = ("timeout", "the decoder made no progress for decode.stall_s seconds and was killed")
    VANISHED = ("vanished", "the file was listed but is not there any more")
    SOURCE_CHANGED = ("source_changed", "the file's content is not what the plan was made from")
    PERCEPTION_FAILED = ("perception_failed", "a perception model raised an error on this clip, on every attempt")
    UNROLL_FAILED = ("unroll_failed", "a stage after perception raised an error on this clip, on every attempt")
    OUT_OF_MEMORY = ("out_of_memory", "the clip needs more memory than the worker has")
    WORKER_DIED = ("worker_died", "the clip killed its worker twice while it was alone on it")

    def __init__(self, code: str, doc: str) -> None:
        self.code = code
        self.doc = doc

    @classmethod
    def of(cls, code: str) -> "Reason":
        """The reason with this code; KeyError when there is none."""
        return next((r for r in cls if r.code == code), None) or cls._missing_code(code)

    @classmethod
    def _missing_code(cls, code: str) -> "Reason":
        raise KeyError(f"{code!r} is not a reason; known are {[r.code for r in cls]}")


class IngestError(Exception):
    """A video or clip that cannot be used, with its reason."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self):
        return IngestError, (self.reason, str(self))
