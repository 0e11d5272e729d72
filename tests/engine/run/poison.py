"""Imported by Ray workers before they work: perception that does to a clip what the environment says of its video, or
what the file `<video>.poison` beside it says."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np

from engine.ingest.decoder import DecodeProcess
from engine.perception import Models, registry

BOTH = threading.Barrier(2)


class Poisoned:
    def __init__(self, inner):
        self.inner = inner

    def track(self, clip):
        name = Path(clip.uri).stem
        note = Path(clip.uri).with_suffix(".poison")
        if note.exists():
            poison(clip, note.read_text().split())
        if name == os.environ.get("POISON"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if name == os.environ.get("POISON_ONCE"):
            marker = Path(clip.uri).with_suffix(".died")
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        if name == os.environ.get("POISON_ERROR"):
            raise ValueError("this clip disagrees")
        return self.inner.track(clip)


def poison(clip, words: list[str]) -> None:
    """segv | memory | oom | hog GIGABYTES | kill_once | sleep SECONDS | meet SECONDS (another clip in this process) |
    remove FILE | change FILE | node (write the id of this Ray node to <video>.node)"""
    folder = Path(clip.uri).parent
    match words:
        case ["oom"]:  # the kernel's killer, for this process alone: a control group of its own with little memory
            group = Path(os.environ["POISON_GROUP"])
            (group / "cgroup.procs").write_text(str(os.getpid()))
            hog = [np.ones(16 << 20, np.uint8) for _ in range(64)]
            raise AssertionError(f"{len(hog)} x 16 MiB fitted")
        case ["hog", gigabytes]:  # for Ray's memory monitor: more and more, slowly enough for it to see
            hog = []
            for _ in range(int(float(gigabytes) * 16)):
                hog.append(np.ones(64 << 20, np.uint8))
                time.sleep(0.1)
            time.sleep(5)
        case ["sleep", seconds]:
            time.sleep(float(seconds))
        case ["segv"]:
            os.kill(os.getpid(), signal.SIGSEGV)
        case ["memory"]:
            np.zeros(1 << 50, np.uint8)
        case ["kill_once"]:
            try:
                Path(clip.uri).with_suffix(".died").touch(exist_ok=False)
            except FileExistsError:
                return
            os.kill(os.getpid(), signal.SIGKILL)
        case ["meet", seconds]:
            try:
                BOTH.wait(float(seconds))
            except threading.BrokenBarrierError:
                BOTH.reset()
                raise RuntimeError("no other clip came") from None
        case ["node"]:
            import ray

            Path(clip.uri).with_suffix(".node").write_text(ray.get_runtime_context().get_node_id())
        case ["remove", file]:
            (folder / file).unlink(missing_ok=True)
        case ["change", file]:
            os.utime(folder / file, (1, 1))


def hanging(ask):
    """DecodeProcess.ask whose child hangs (is stopped) at the request that the file `<video>.hang` names."""

    def ask_or_hang(self, *request, **more):
        if request[0] == "open":
            self.note = Path(request[1]).with_suffix(".hang")
        elif self.note.exists() and request[0] == self.note.read_text():
            self._process.send_signal(signal.SIGSTOP)
        return ask(self, *request, **more)

    return ask_or_hang


def install() -> None:
    """Wrap the precomputed bundle and the decoder of this process."""
    build = registry.BUNDLES["precomputed"]
    DecodeProcess.ask = hanging(DecodeProcess.ask)

    def poisoned(options, wanted):
        left = list(Path(os.environ["POISON_SETUPS"]).iterdir()) if os.environ.get("POISON_SETUPS") else []
        if left:
            left[0].unlink()
            raise OSError("the weights are not there yet")
        if os.environ.get("POISON_SETUP"):
            raise OSError("the weights are gone")
        models = build(options, wanted)
        return Models(Poisoned(models.tracker), models.geometry, models.depth)

    registry.BUNDLES["precomputed"] = poisoned
