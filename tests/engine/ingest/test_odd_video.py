"""57 odd and broken files of other people: the right frames or a clear reason, never a hang or a crash.

PROBE.tsv beside them says what PyAV made of each; a frame count that differs from it is listed here with its cause.
"""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from engine.ingest.clip import read_clip, survey
from engine.ingest.decoder import DecodeProcess, Decoder
from engine.ingest.options import ClipOptions, DecodeOptions, ShotOptions
from engine.ingest.reasons import IngestError
from engine.ingest.sources import current
from engine.ingest.view import view_for

pytestmark = pytest.mark.real

REASONS = {
    "no_video_stream": {
        "sample_audio_only.mp4",
        "bbb_1ch_16kHz_aac.mp4",
        "bbb_1ch_12kHz_q10_vorbis.webm",
        "sine_mono_s16.wav",
    },
    "not_a_video": {"sample_malformed_free_box.mp4", "sample_av1c_fragmented_clearkey.mp4", "chunk_out_of_range.mp4"},
    "no_frames": {
        "invalid_userdata.mp4",
        "test_case_1185230.mp4",
        "bipbop_nonfragment_header.mp4",
        "short-cenc.mp4",
        "invalid-codec.mp4",
    },
}
COUNTS = {
    "nasa_13013.mp4": 390,  # the probe read the first of two video streams, we read FFmpeg's best
}


def files(folder: Path) -> list[tuple[Path, str]]:
    rows = csv.DictReader((folder / "PROBE.tsv").open(), delimiter="\t")
    return [(folder / row["group"] / row["file"], row["pyav"]) for row in rows]


def opened(path: Path, process: DecodeProcess):
    """(info, None) or (None, reason)."""
    try:
        return Decoder(path, process).info, None
    except IngestError as error:
        return None, error.reason.code


def test_every_file(real_data):
    """Frame counts, sizes and durations against the probe; a clip of every file that is long enough."""
    clip, shots = ClipOptions(frames=9, min_frames=5, max_gap_s=1.0), ShotOptions(enabled=False)
    seen = 0
    with DecodeProcess(DecodeOptions(stall_s=60)) as process:
        for path, probe in files(real_data / "odd_video"):
            seen += 1
            wanted = next((reason for reason, names in REASONS.items() if path.name in names), None)
            info, reason = opened(path, process)
            assert reason == wanted, f"{path.name}: {reason}"
            if info is None:
                continue
            count = COUNTS.get(path.name) or int(re.search(r"frames=(\d+)", probe).group(1))
            assert abs(len(info.times) - count) <= 1, f"{path.name}: {len(info.times)} frames, the probe has {count}"
            assert info.times[0] == 0, path.name
            assert (np.diff(info.times) > 0).all(), path.name
            sizes = re.search(r" (\d+)x(\d+) .*rot=(-?\d+)", probe)
            if path.name not in ("nasa_13013.mp4", "400x300-red-resize-200x150-green.mp4"):
                width, height = int(sizes[1]), int(sizes[2])
                turned = int(sizes[3]) % 180 != 0
                assert info.size == ((width, height) if turned else (height, width)), path.name
            if info.times[-1] < (clip.min_frames - 1) / clip.fps:
                with pytest.raises(IngestError, match="min_frames"):
                    survey(current(str(path)), clip, shots, process)
                continue
            if len(info.times) * info.size[0] * info.size[1] > 120e6:
                continue  # minutes of decoding: its frames are as good as those of its shorter kin
            source = current(str(path))
            found = survey(source, clip, shots, process)
            window = found.windows[-1]
            sample = read_clip(f"{found.video_id}-0000", source, found.reader, window, (64, 112), clip, process)
            assert sample.frames.shape == (window.frames, 64, 112, 3), path.name
            wanted_times = window.start_s + np.arange(window.frames) / clip.fps
            step = np.diff(info.times).max()
            assert np.abs(sample.times - wanted_times).max() <= step / 2 + 0.002, path.name
    assert seen == 57


def test_rotated_twins_look_the_same(real_data):
    """The same scene stored upright and turned by 90 and 180 degrees with metadata: upright after decoding."""
    shown = {}
    with DecodeProcess(DecodeOptions()) as process:
        for name in ("video_0.mov", "video_180.mov", "video_90.mov"):
            for reader in ("decord", "pyav"):
                video = Decoder(real_data / "odd_video" / "rotation" / name, process, (reader,))
                shown[name, reader] = video.frames(np.array([0]), view_for(*video.info.size, *video.info.size))[0]
    for name in ("video_0.mov", "video_180.mov", "video_90.mov"):
        difference = np.abs(shown[name, "decord"].astype(int) - shown[name, "pyav"])
        assert difference.mean() < 2, name
