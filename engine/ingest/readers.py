"""Two readers of one video file, decord first and PyAV second, behind the same three names.

`times` float64 [M] seconds of the presented frames after the first one, increasing; `size` (height, width) of the
upright frame; `read(indices)` yields uint8 RGB frames [H,W,3] for ascending indices. Both apply rotation
metadata. They run inside the decoding child only: a broken file may hang or crash them.
"""

import errno
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from engine.ingest.reasons import IngestError, Reason

MAX_SECONDS = 1e6  # 11 days: timestamps beyond it are damage (an AVI in the wild claims -3e17)
SEEK_AHEAD = 48  # frames: decoding on is cheaper than a seek, which restarts at a key frame (GOPs are 12 to 250)


class DecordReader:
    """decord counts packets and fills frames that do not decode with copies: any such fill is refused here.

    `seekable` False (containers without an index, where decord's seek misses) reads on from the start instead.
    """

    name = "decord"
    damaged, counted = 0, False

    def __init__(self, path: str, threads: int, seekable: bool) -> None:
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        # fault_tol is a share of the frames: this one is below one frame of any file
        self._open = lambda: decord.VideoReader(path, num_threads=threads, fault_tol=1e-9)
        self._seekable = seekable
        self._reader, self._next = self._open(), 0
        times = self._reader.get_frame_timestamp(np.arange(len(self._reader)))[:, 0].astype(np.float64)
        presented = times >= 0  # frames before time 0 are decoded for an edit list but not shown
        self._offset = int(np.argmax(presented))
        if not presented[self._offset :].all() or not sane(times[self._offset :]):
            raise ValueError(f"timestamps from {times.min():g} to {times.max():g} s")
        self.times = times[self._offset :] - times[self._offset]
        self._first = self._frame(self._offset)
        self.size = self._first.shape[:2]

    def read(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        for index in indices:
            yield self._first if index == 0 else self._frame(int(index) + self._offset)

    def _frame(self, target: int) -> np.ndarray:
        ahead = target - self._next
        if ahead < 0:
            self._reader, ahead = self._open(), target
        if ahead > SEEK_AHEAD and self._seekable:
            self._reader.seek_accurate(target)
        else:
            for _ in range(ahead):  # not skip_frames: it goes by the mean rate and misses where the rate varies
                self._reader.next()
        self._next = target + 1
        return self._reader.next().asnumpy()


class PyavReader:
    """Decodes from the start, keeps what decodes, and knows which frames are damaged."""

    name = "pyav"

    def __init__(self, path: str, threads: int, beat: Callable[[], None]) -> None:
        import av

        self._av, self._path, self._threads, self._beat = av, path, threads, beat
        pts, self.damaged, rate, base = [], 0, None, None
        self._error: Exception | None = None
        for frame in self._decode():
            if frame is None or frame.is_corrupt:
                self.damaged += 1
                continue
            if not pts:
                self._first_size = (frame.height, frame.width)
                rate, base = self._rate, frame.time_base
            pts.append(frame.pts)
        if not pts:
            raise IngestError(Reason.NO_FRAMES, f"no packet decodes; the last error is: {self._error}")
        self.counted = any(p is None for p in pts)
        if not self.counted:
            times = np.array([float(p * base) for p in pts])
            self.counted = not sane(times)
        if self.counted:
            if rate is None or not 0 < float(rate) <= 1000:
                raise IngestError(Reason.BAD_TIMESTAMPS, f"no usable presentation times, and the frame rate is {rate}")
            times = np.arange(len(pts)) / float(rate)
        self.times = times - times[0]
        height, width = self._first_size
        self.size = (width, height) if self._turns % 2 else (height, width)

    def read(self, indices: Iterable[int]) -> Iterator[np.ndarray]:
        position, frames = 0, self._good()
        for index in indices:
            if index < position:
                position, frames = 0, self._good()
            for frame in frames:
                position += 1
                if position == index + 1:
                    yield self._upright(frame)
                    break

    def _good(self):
        return (f for f in self._decode() if f is not None and not f.is_corrupt)

    def _decode(self):
        """Frames of the best video stream; None for a packet that does not decode."""
        av = self._av
        with av.open(self._path) as container:
            stream = best_stream(container)
            if stream.codec_context is None:
                raise IngestError(Reason.NO_FRAMES, "the video stream's codec is unknown")
            stream.codec_context.thread_count = self._threads
            self._rate = stream.average_rate or stream.guessed_rate
            for packet in _packets(container, stream, av):
                try:
                    frames = packet.decode() if packet is not None else [None]
                except av.FFmpegError as error:
                    if error.errno == errno.ENOMEM:  # the limit of this process, not damage in the file
                        raise MemoryError(str(error)) from error
                    self._error, frames = error, [None]
                self._beat()
                for frame in frames:
                    if frame is not None:
                        self._turns = round(getattr(frame, "rotation", 0) / 90) % 4
                    yield frame

    def _upright(self, frame) -> np.ndarray:
        """RGB at the first frame's size (a stream may change it), turned as the display matrix says."""
        height, width = self._first_size
        image = frame.to_ndarray(format="rgb24", width=width, height=height)
        return np.ascontiguousarray(np.rot90(image, self._turns))


def best_stream(container):
    """The video stream that FFmpeg deems best, never cover art; IngestError when there is none."""
    import av

    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise IngestError(
            Reason.NO_VIDEO_STREAM, f"the file has {len(container.streams.audio)} audio streams and no video"
        )
    best = container.streams.best("video")
    return best if best in streams else streams[0]


def sane(times: np.ndarray) -> bool:
    """Finite, strictly increasing and within MAX_SECONDS of each other."""
    return bool(np.isfinite(times).all() and np.all(np.diff(times) > 0) and times[-1] - times[0] < MAX_SECONDS)


def _packets(container, stream, av):
    """Packets of the stream; one None where the demuxer itself gives up."""
    try:
        yield from container.demux(stream)
    except av.FFmpegError:
        yield None
