"""Perception: the models that look at frames. `Models` is what a stage sees; adapters are found by name."""

from dataclasses import dataclass

from engine.perception.protocols import Depth, Geometry, Tracker


@dataclass(frozen=True)
class Models:
    """The loaded models of one worker."""

    tracker: Tracker
    geometry: Geometry
    depth: Depth | None = None
