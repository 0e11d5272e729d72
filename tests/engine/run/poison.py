"""Imported by Ray workers before they work: perception that does to a clip what the video's name says."""

import os
import signal
from pathlib import Path

from engine.perception import Models, registry


class Poisoned:
    def __init__(self, inner):
        self.inner = inner

    def track(self, clip):
        name = Path(clip.uri).stem
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


def install() -> None:
    """Wrap the precomputed bundle of this process."""
    build = registry.BUNDLES["precomputed"]

    def poisoned(options, wanted):
        if os.environ.get("POISON_SETUP"):
            raise OSError("the weights are gone")
        models = build(options, wanted)
        return Models(Poisoned(models.tracker), models.geometry, models.depth)

    registry.BUNDLES["precomputed"] = poisoned
