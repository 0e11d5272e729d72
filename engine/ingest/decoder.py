"""A video file opened in a child process that can hang or crash without harm."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

import engine
from engine.ingest.options import DecodeOptions, ShotOptions
from engine.ingest.reasons import IngestError, Reason
from engine.types import View

# a frame count a file may miss without being called truncated: containers count frames that are never shown
# (edit lists, encoder priming; one or two in the files we met)
UNSHOWN_FRAMES, UNSHOWN_SHARE = 2, 0.02


@dataclass(frozen=True)
class VideoInfo:
    """An open video.

    times         float64 [M] seconds of each presented frame after the first
    size          (height, width) of the upright frame, pixels
    pixel_aspect  displayed width of a pixel over its height
    focal_35mm    focal length in mm on a 36 mm wide film, when the metadata tells
    reader        "decord" or "pyav"; refusal says why decord was not used
    promised      frames that the file's index promises, 0 where there is none
    damaged       frames that did not decode cleanly
    counted       True when the presentation times were unusable and frames were counted at the average rate
    """

    times: np.ndarray
    size: tuple[int, int]
    pixel_aspect: float
    focal_35mm: float | None
    reader: str
    refusal: str
    promised: int
    damaged: int
    counted: bool
    seekable: bool
    codec: str
    pixel_format: str

    @property
    def lost(self) -> int:
        """Frames promised or damaged that cannot be shown, beyond what containers count without showing."""
        missing = max(self.damaged, self.promised - len(self.times))
        return missing if missing > max(UNSHOWN_FRAMES, UNSHOWN_SHARE * len(self.times)) else 0


class DecodeProcess:
    """One decoding child, started when first asked, used for one video after another, killed when it stalls.

    Every failure is an IngestError with its reason; after a stall or a crash the next question starts a new child.
    """

    def __init__(self, options: DecodeOptions) -> None:
        self.options = options
        self._process: subprocess.Popen | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> "DecodeProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def ask(self, *request: Any, receive: Callable[[Connection], Any] | None = None) -> Any:
        """Send a request of `engine.ingest.child`, hand every frame to `receive`, return the answer."""
        if self._process is None:
            self._start()
        try:
            self._pipe.send(request)
            while True:
                if not self._pipe.poll(self.options.stall_s):
                    self.close()
                    raise IngestError(
                        Reason.TIMEOUT,
                        f"{request[0]}: no progress for {self.options.stall_s:g} s (decode.stall_s), decoder killed",
                    )
                kind, *rest = self._pipe.recv()
                if kind == "frame":
                    receive(self._pipe)
                elif kind == "done":
                    return rest[0]
                elif kind == "failed":
                    raise IngestError(Reason.of(rest[0]), rest[1])
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            code = self._process.wait()
            self.close()
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            raise IngestError(Reason.UNREADABLE, f"{request[0]}: the decoder died ({how})") from error

    def _start(self) -> None:
        ours, theirs = multiprocessing.Pipe()
        root = str(Path(engine.__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "engine.ingest.child", str(theirs.fileno()), str(self.options.memory_gb)],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # decoders write to it for every damaged packet; what matters comes back
        )
        theirs.close()
        self._pipe = ours


class Decoder:
    """An open video in a DecodeProcess: `info`, `survey`, `frames`. Valid until the process opens the next one."""

    def __init__(self, path: str | Path, process: DecodeProcess, readers: tuple[str, ...] = ("decord", "pyav")) -> None:
        self._path, self._process, self._readers = str(path), process, tuple(readers)
        try:
            self.info = self._open()
        except IngestError as error:
            if error.reason not in (Reason.TIMEOUT, Reason.UNREADABLE) or "decord" not in self._readers:
                raise
            self._readers = ("pyav",)  # decord hung or crashed the child: the second reader gets its chance
            self.info = self._open()

    def survey(self, options: ShotOptions) -> list[int]:
        """First source frames of all shots but the first. Decodes every frame: damage is found here, not later.

        When decord stops in mid-stream PyAV takes over, and `info` with it.
        """
        try:
            return self._process.ask("survey", options)
        except IngestError:
            if self.info.reader == "pyav":
                raise
            self._readers = ("pyav",)
            self.info = self._open()
            return self._process.ask("survey", options)

    def frames(self, indices: np.ndarray, view: View) -> np.ndarray:
        """uint8 RGB [len(indices), view.height, view.width, 3] of the source frames `indices` (ascending)."""
        out = np.empty((len(indices), view.height, view.width, 3), np.uint8)
        slots = iter(np.unique(indices, return_index=True)[1])
        self._process.ask(
            "frames",
            np.asarray(indices),
            view,
            receive=lambda pipe: pipe.recv_bytes_into(out[next(slots)].reshape(-1)),
        )
        for i in range(1, len(indices)):
            if indices[i] == indices[i - 1]:
                out[i] = out[i - 1]
        return out

    def _open(self) -> VideoInfo:
        options = self._process.options
        return VideoInfo(**self._process.ask("open", self._path, options.threads, self._readers))
