"""Whatever a file does to its decoder, the caller gets a reason and the next file is decoded."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from video_files import number_of, numbered, write_video

from engine.ingest.clip import survey
from engine.ingest.decoder import DecodeProcess, Decoder
from engine.ingest.options import ClipOptions, DecodeOptions, ShotOptions
from engine.ingest.reasons import IngestError, Reason
from engine.ingest.sources import current
from engine.ingest.view import view_for


@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "a.mp4", [numbered(i) for i in range(17)])


def child_of(process: DecodeProcess) -> int:
    return process._process.pid


def test_a_hanging_decoder_is_killed_and_the_next_file_works(tmp_path, video):
    """A named pipe that nobody writes to blocks every reader for ever."""
    pipe = tmp_path / "hang.mp4"
    os.mkfifo(pipe)
    with DecodeProcess(DecodeOptions(stall_s=3.0)) as process:
        Decoder(video, process)
        before, start = child_of(process), time.monotonic()
        with pytest.raises(IngestError, match="no progress") as error:
            Decoder(pipe, process, ("pyav",))
        assert error.value.reason is Reason.TIMEOUT
        assert time.monotonic() - start < 20
        assert not os.path.exists(f"/proc/{before}")
        assert len(Decoder(video, process).info.times) == 17


def test_a_crashing_decoder_is_a_reason_and_the_next_file_works(video):
    with DecodeProcess(DecodeOptions()) as process:
        decoder = Decoder(video, process)
        os.kill(child_of(process), signal.SIGSEGV)
        with pytest.raises(IngestError, match=r"died \(signal 11\)") as error:
            decoder.frames(np.arange(3), view_for(96, 160, 48, 80))
        assert error.value.reason is Reason.UNREADABLE
        assert number_of(Decoder(video, process).frames(np.array([5]), view_for(96, 160, 96, 160))[0]) == 5


def test_repeated_and_skipped_frames(video):
    with DecodeProcess(DecodeOptions()) as process:
        wanted = np.array([0, 0, 3, 3, 3, 4, 16])
        frames = Decoder(video, process).frames(wanted, view_for(96, 160, 96, 160))
        assert [number_of(f) for f in frames] == wanted.tolist()


def test_a_file_that_needs_too_much_memory(tmp_path):
    big = write_video(tmp_path / "big.mkv", [np.zeros((4320, 7680, 3), np.uint8)] * 3, options={"preset": "ultrafast"})
    with (
        DecodeProcess(DecodeOptions(memory_gb=0.7)) as process,
        pytest.raises(IngestError) as error,
    ):
        survey(current(str(big)), ClipOptions(), ShotOptions(enabled=False), process)
    assert error.value.reason is Reason.OUT_OF_MEMORY


def test_the_child_dies_with_its_parent(video):
    """A parent that is killed without a chance to clean up leaves no decoder behind."""
    code = (
        "import sys, time\n"
        "from engine.ingest.decoder import *\n"
        "p = DecodeProcess(DecodeOptions()); Decoder(sys.argv[1], p)\n"
        "print(p._process.pid, flush=True); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(video)], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 15
    while os.path.exists(f"/proc/{child}") and _state(child) != "Z" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{child}") or _state(child) == "Z"


def _state(pid: int) -> str:
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
