"""The decoding child: opens one video, answers requests over a pipe. Run by `engine.ingest.decoder` alone.

A request is a tuple (name, *arguments); an answer is any number of ("beat",) and frames, then ("done", value) or
("failed", reason code, message). A frame is the tuple ("frame",) followed by its raw bytes.
"""

import os
import resource
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from engine.ingest.reasons import IngestError, Reason

BEAT_S = 1.0


class Child:
    """One open video."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.reader: Any = None
        self._beaten = time.monotonic()

    def beat(self) -> None:
        """Tell the parent that decoding goes on, at most once a second."""
        if time.monotonic() - self._beaten > BEAT_S:
            self._beaten = time.monotonic()
            self.pipe.send(("beat",))

    def open(self, path: str, threads: int, readers: tuple[str, ...]) -> dict:
        """Open with the first of `readers` that takes the file; the fields of `engine.ingest.decoder.VideoInfo`."""
        from engine.ingest.probe import probe
        from engine.ingest.readers import DecordReader, PyavReader

        self.reader, refusal = None, ""
        facts = probe(path)
        if "decord" in readers:
            try:
                self.reader = DecordReader(path, threads, facts["seekable"])
            except MemoryError:
                raise
            except Exception as error:  # decord raises bare RuntimeError and its own types alike
                refusal = " ".join(str(error).split())[:300]
        if self.reader is None:
            self.reader = PyavReader(path, threads, self.beat)
        return facts | {
            "reader": self.reader.name,
            "refusal": refusal,
            "times": self.reader.times,
            "size": self.reader.size,
            "damaged": self.reader.damaged,
            "counted": self.reader.counted,
        }

    def frames(self, indices: np.ndarray, view: Any) -> int:
        """Send the source frames `indices` (ascending, repeats allowed), cropped and resized to `view`."""
        from engine.ingest.view import apply_view

        unique = np.unique(indices)
        sent = 0
        for frame in self.reader.read(unique):
            self.beat()
            self.pipe.send(("frame",))
            self.pipe.send_bytes(apply_view(frame, view).reshape(-1))
            sent += 1
        if sent != len(unique):
            raise IngestError(Reason.TRUNCATED, f"{sent} of {len(unique)} frames decoded")
        return sent

    def survey(self, options: Any) -> list[int]:
        """Decode every frame once; source frames at which a new shot starts (0 not among them)."""
        from engine.ingest.shots import cuts

        count = len(self.reader.times)
        frames = self._beating(self.reader.read(range(count)))
        if options.enabled:
            return cuts(frames, options)
        for _ in frames:
            pass
        return []

    def _beating(self, frames):
        for frame in frames:
            self.beat()
            yield frame


def answer(child: Child, request: tuple) -> tuple:
    """What to send back for a request."""
    name, *arguments = request
    try:
        return "done", getattr(child, name)(*arguments)
    except IngestError as error:
        reason, message = error.reason, str(error)
    except MemoryError as error:
        reason, message = Reason.OUT_OF_MEMORY, f"MemoryError: {error}"
    except Exception as error:
        reason, message = Reason.UNREADABLE, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    # decoders call a failed allocation "invalid data": at the limit of memory it is not the file's fault
    if reason in (Reason.NO_FRAMES, Reason.UNREADABLE, Reason.OUT_OF_MEMORY) and near_limit():
        return "failed", Reason.OUT_OF_MEMORY.code, f"decoding needs more than decode.memory_gb: {message}"
    return "failed", reason.code, message


def near_limit() -> bool:
    """True when this process once had more than 80 % of the address space that it may have."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return False
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmPeak"))
    return peak > 0.8 * limit


def main(descriptor: int, memory_gb: float) -> None:
    """Serve requests until the pipe closes. The parent's death ends the child even while a decoder hangs."""
    if memory_gb:
        limit = int(memory_gb * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear: this video shall be finished
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    pipe = Connection(descriptor)
    child = Child(pipe)
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        pipe.send(answer(child, request))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
