"""From a file to a clip: the right frame at every time, whatever the container did to them."""

import json
from dataclasses import replace
from fractions import Fraction

import av
import fsspec
import numpy as np
import pytest
from video_files import number_of, numbered, turn, write_audio, write_video

from engine.ingest.clip import read_clip, survey
from engine.ingest.options import ClipOptions, ShotOptions
from engine.ingest.reasons import IngestError, Reason
from engine.ingest.sources import current, list_sources, video_id

OPTIONS = ClipOptions(frames=17, min_frames=9)
SIZE = (64, 112)


def clips(path, process, clip=OPTIONS, shots=None, size=SIZE):
    source = current(str(path))
    found = survey(source, clip, shots or ShotOptions(), process)
    return [
        read_clip(f"{found.video_id}-{i:04d}", source, found.reader, window, size, clip, process)
        for i, window in enumerate(found.windows)
    ]


def refused(path, process, **changes) -> Reason:
    with pytest.raises(IngestError) as error:
        clips(path, process, ClipOptions(**({"frames": 17, "min_frames": 9} | changes)))
    return error.value.reason


def frames(count, **how):
    return [numbered(i, **how) for i in range(count)]


def test_a_plain_video_gives_its_own_frames(tmp_path, process):
    (clip,) = clips(write_video(tmp_path / "a.mp4", frames(17)), process)
    assert clip.frames.shape == (17, *SIZE, 3)
    assert clip.frames.dtype == np.uint8
    assert [number_of(f) for f in clip.frames] == list(range(17))
    np.testing.assert_allclose(clip.times, np.arange(17) / 16, atol=1e-4)
    assert clip.key == f"{video_id(tmp_path / 'a.mp4')}-0000"
    assert clip.K is None
    assert clip.K_source == "none"


def test_every_window_of_a_long_video_starts_where_the_last_ended(tmp_path, process):
    """200 frames with key frames 12 apart: later windows are reached by seeking."""
    found = clips(write_video(tmp_path / "a.mp4", frames(200)), process)
    shown = [number_of(f) for clip in found for f in clip.frames]
    assert shown == list(range(len(shown)))
    assert len(found) == 12


@pytest.mark.parametrize("suffix", ["avi", "mkv", "ts", "mov"])
def test_containers(tmp_path, process, suffix):
    codec = "mpeg4" if suffix == "avi" else "libx264"
    found = clips(write_video(tmp_path / f"a.{suffix}", frames(34), codec=codec), process)
    assert [number_of(f) for clip in found for f in clip.frames] == list(range(34))


def test_variable_frame_rate_is_resampled_by_time(tmp_path, process):
    """Frames at irregular times: clip frame k must show the frame nearest to k / 16 s, from the file's own times."""
    rng = np.random.default_rng(3)
    ticks = np.cumsum(rng.integers(500, 9000, 40))  # of 1 / 48000 s: 10 to 190 ms
    times = [Fraction(int(t - ticks[0]), 48000) for t in ticks]
    (clip, *_) = clips(write_video(tmp_path / "vfr.mp4", frames(40), times), process)
    seconds = np.array([float(t) for t in times])
    wanted = np.abs(seconds[None] - (np.arange(len(clip.frames)) / 16)[:, None]).argmin(1)
    assert [number_of(f) for f in clip.frames] == wanted.tolist() == clip.source_frames.tolist()


def test_seeking_in_variable_frame_rate(tmp_path, process):
    """Windows far into a file of jittered times are reached by a seek, and still show their own frames."""
    rng = np.random.default_rng(4)
    ticks = np.cumsum(rng.integers(1500, 4500, 220))
    times = [Fraction(int(t - ticks[0]), 48000) for t in ticks]
    seconds = np.array([float(t) for t in times])
    found = clips(write_video(tmp_path / "vfr.mp4", frames(220), times), process)
    assert len(found) == 13
    for clip in found:
        wanted = np.abs(seconds[None] - (clip.times[0] + np.arange(len(clip.frames)) / 16)[:, None]).min(1)
        shown = np.array([number_of(f) for f in clip.frames])
        assert shown.tolist() == clip.source_frames.tolist()
        assert (np.abs(seconds[shown] - clip.times) < 1e-4).all()
        assert (wanted < 0.06).all()


def test_other_rates_and_late_starts(tmp_path, process):
    """30 fps and 10 fps, presentation beginning at 7 s: frames are picked by time from the first one on."""
    for fps in (30, 10):
        times = [7 + Fraction(i, fps) for i in range(40)]
        (clip, *_) = clips(write_video(tmp_path / f"{fps}.mkv", frames(40), times, fps=fps), process)
        wanted = np.arange(len(clip.frames)) * fps / 16
        assert np.abs(np.array([number_of(f) for f in clip.frames]) - wanted).max() <= 0.5 + 0.02


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation_metadata_is_honoured_by_both_readers(tmp_path, process, degrees):
    """Frames stored turned, with the metadata that turns them back."""
    stored = [np.ascontiguousarray(np.rot90(f, degrees // 90)) for f in frames(17, height=96, width=160)]
    path = turn(write_video(tmp_path / "turned.mp4", stored), degrees)
    source = current(str(path))
    found = survey(source, OPTIONS, ShotOptions(), process)
    for reader in ("decord", "pyav"):
        clip = read_clip(f"{found.video_id}-0000", source, reader, found.windows[0], (96, 160), OPTIONS, process)
        assert (clip.view.source_height, clip.view.source_width) == (96, 160)
        assert [number_of(f) for f in clip.frames] == list(range(17))


@pytest.mark.parametrize(
    ("codec", "pixels"), [("libx265", "yuv420p10le"), ("libx264", "yuv444p"), ("libvpx-vp9", "yuv420p")]
)
def test_ten_bit_and_other_formats(tmp_path, process, codec, pixels):
    options = {"x265-params": "log-level=none"} if codec == "libx265" else None
    path = write_video(tmp_path / "a.mkv", frames(17), codec=codec, pixels=pixels, options=options)
    (clip,) = clips(path, process)
    assert [number_of(f) for f in clip.frames] == list(range(17))
    assert abs(clip.frames[:, 40:].astype(float).mean() - 90) < 4


def test_odd_sizes_and_the_second_reader(tmp_path, process):
    """VP9 of odd size by either reader: decord of some builds refuses it."""
    path = write_video(tmp_path / "odd.webm", frames(17, height=97, width=161), codec="libvpx-vp9")
    source = current(str(path))
    found = survey(source, OPTIONS, ShotOptions(), process)
    for reader in (found.reader, "pyav"):
        clip = read_clip(f"{found.video_id}-0000", source, reader, found.windows[0], SIZE, OPTIONS, process)
        assert [number_of(f) for f in clip.frames] == list(range(17))


def test_a_clip_never_crosses_a_shot(tmp_path, process):
    shots = frames(30) + [numbered(i, tint=(20, 160, 60)) for i in range(30, 60)]
    path = write_video(tmp_path / "cut.mp4", shots)
    found = clips(path, process)
    assert [number_of(c.frames[0]) for c in found] == [0, 17, 30, 47]
    assert all(len({number_of(f) >= 30 for f in c.frames}) == 1 for c in found)
    assert len(clips(path, process, shots=ShotOptions(enabled=False))) == 4  # 17 + 17 + 17 + 9, cut or not
    assert number_of(clips(path, process, shots=ShotOptions(enabled=False))[2].frames[0]) == 34


def test_truncated(tmp_path, process):
    """Cut off in the middle of the data (index first): refused, or its good part used when asked for."""
    path = write_video(tmp_path / "a.mp4", frames(60))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert refused(path, process) is Reason.TRUNCATED
    process.options = replace(process.options, keep_damaged=True)
    try:
        found = clips(path, process)
    finally:
        process.options = replace(process.options, keep_damaged=False)
    shown = [number_of(f) for clip in found for f in clip.frames]
    assert 17 <= len(shown) < 60
    assert shown == list(range(len(shown)))


def test_reasons(tmp_path, process):
    audio = write_audio(tmp_path / "audio.mp4")
    assert refused(audio, process) is Reason.NO_VIDEO_STREAM
    text = tmp_path / "text.mp4"
    text.write_text("not a video " * 100)
    assert refused(text, process) is Reason.NOT_A_VIDEO
    empty = tmp_path / "empty.mp4"
    empty.touch()
    assert refused(empty, process) is Reason.NOT_A_VIDEO
    assert refused(write_video(tmp_path / "short.mp4", frames(6)), process) is Reason.TOO_SHORT
    with pytest.raises(IngestError) as error:
        current(str(tmp_path / "none.mp4"))
    assert error.value.reason is Reason.VANISHED


def test_a_changed_file_is_noticed(tmp_path, process):
    path = write_video(tmp_path / "a.mp4", frames(17))
    source = current(str(path))
    found = survey(source, OPTIONS, ShotOptions(), process)
    write_video(path, frames(18))
    with pytest.raises(IngestError) as error:
        read_clip(f"{found.video_id}-0000", source, found.reader, found.windows[0], SIZE, OPTIONS, process)
    assert error.value.reason is Reason.SOURCE_CHANGED


def test_sidecars_and_focal_length(tmp_path, process):
    path = write_video(tmp_path / "a.mp4", frames(17))
    (tmp_path / "a.txt").write_text("a bar code\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "pair.json").write_text(json.dumps({"id": "w1", "view": "b"}))
    clip = clips(path, process, ClipOptions(frames=17, min_frames=9, focal_px=120.0, caption="default"))[0]
    assert clip.caption == "a bar code"
    assert clip.pair == ("w1", "b")
    scale = 64 / 96  # 96x160 to 64x112: the height is whole, the width is cropped from 160 to 168 * 160 / 168
    assert clip.K_source == "user"
    assert clip.K[1, 1] == pytest.approx(120 * scale * (96 / clip.view.crop_height), rel=1e-6)
    (tmp_path / "a.txt").unlink()
    assert clips(path, process, ClipOptions(frames=17, min_frames=9, caption="default"))[0].caption == "default"


def test_focal_length_of_the_metadata(tmp_path, process):
    """A 28 mm equivalent has a diagonal field of view of 75.4 degrees."""
    path = tmp_path / "phone.mov"
    plain = write_video(tmp_path / "plain.mov", frames(17))
    with av.open(str(plain)) as source, av.open(str(path), "w", options={"movflags": "use_metadata_tags"}) as target:
        target.metadata["com.apple.quicktime.camera.focal_length.35mm_equivalent"] = "28"
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    (clip,) = clips(path, process, size=(96, 160))
    assert clip.K_source == "metadata"
    assert 2 * np.degrees(np.arctan(np.hypot(96, 160) / 2 / clip.K[0, 0])) == pytest.approx(75.4, abs=0.1)


def test_listing(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for name in ("b.mp4", "deep/er/a.MKV", "deep/notes.txt", ".hidden/c.mp4", "deep/.d.mp4"):
        (tmp_path / name).write_bytes(b"x")
    assert [s.uri.removeprefix(f"{tmp_path}/") for s in list_sources(str(tmp_path))] == ["b.mp4", "deep/er/a.MKV"]
    assert len(list_sources(str(tmp_path / "deep" / "notes.txt"))) == 1  # a named file is taken whatever its suffix
    with pytest.raises(FileNotFoundError, match="does not exist"):
        list_sources(str(tmp_path / "nowhere"))


def test_any_fsspec_url(tmp_path, process):
    """A video in another file system is copied, read and let go."""
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/a.mp4", write_video(tmp_path / "a.mp4", frames(17)).read_bytes())
    memory.pipe("/bucket/a.txt", b"far away")
    (source,) = list_sources("memory://bucket")
    found = survey(source, OPTIONS, ShotOptions(), process)
    clip = read_clip(f"{found.video_id}-0000", source, found.reader, found.windows[0], SIZE, OPTIONS, process)
    assert [number_of(f) for f in clip.frames] == list(range(17))
    assert clip.caption == "far away"
