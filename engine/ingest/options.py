"""The options of ingest."""

from dataclasses import dataclass

from engine.options import option


@dataclass
class ClipOptions:
    frames: int = option(81, "frames of a clip, T = 1 + 4k; 81 is what Wan 2.1 and Phantom were trained on")
    min_frames: int = option(
        33,
        "a shot's remainder shorter than `frames` becomes a shorter 1 + 4k clip down to this many frames, less is "
        "dropped; 33 is two seconds at 16 fps. Set it to `frames` to have clips of one length only",
    )
    stride: int = option(0, "frames from one clip's start to the next within a shot; 0 means `frames`: no overlap")
    fps: float = option(16.0, "frames per second of the clips (16 is Wan 2.1's rate; Phantom-14B was trained at 24)")
    max_gap_s: float = option(
        0.5,
        "a pause between two source frames longer than this many seconds ends a shot (a screen that froze, frames "
        "lost to damage); half a second is half a stride of a walking person",
    )
    focal_px: float | None = option(
        None, "horizontal focal length in pixels of the source video, when known for every video of this input"
    )
    fov_deg: float | None = option(None, "horizontal field of view of the source video in degrees, instead of focal_px")
    caption: str = option("", "caption of a video that has no <video>.txt beside it")


@dataclass
class ShotOptions:
    enabled: bool = option(True, "cut videos at shot boundaries (PySceneDetect); false takes each video as one shot")
    detector: str = option(
        "adaptive",
        "adaptive: content change against its neighbourhood, tolerant of fast camera motion; content: absolute change",
        choices=("adaptive", "content"),
    )
    threshold: float = option(
        0.0, "detector threshold; 0 takes PySceneDetect's own default (3.0 for adaptive, 27.0 for content)"
    )
    min_frames: int = option(8, "source frames that a shot has at least; nearer cuts are merged")
    width: int = option(256, "width in pixels at which shots are looked for (PySceneDetect's own downscale target)")


@dataclass
class DecodeOptions:
    stall_s: float = option(60.0, "a decoder that makes no progress for this many seconds is killed")
    threads: int = option(2, "decoding threads of the child process")
    keep_damaged: bool = option(False, "use the good frames of truncated and damaged videos instead of quarantine")
    memory_gb: float = option(
        8.0,
        "address space of the decoding child in GiB, beyond it a file fails as out_of_memory; 0 = no limit",
    )
    cache: str = option(
        "", "folder for copies of remote videos; empty = metaworld-videos-<user> in the system's temporary folder"
    )
    cache_gb: float = option(
        8.0,
        "GiB of copies kept on one machine, so that the windows of a video fetch it once; what is being read is kept "
        "beyond it, 0 = nothing else is",
    )
