"""Perception: the models that look at frames. Adapters are found by name; `Perceived` is what they say of a clip."""

from dataclasses import dataclass

from engine.perception.protocols import Depth, Geometry, Tracker
from engine.types import DepthEstimate, GeometryEstimate, Tracks


@dataclass(frozen=True)
class Models:
    """The loaded models of one worker."""

    tracker: Tracker
    geometry: Geometry
    depth: Depth | None = None


@dataclass(frozen=True)
class Perceived:
    """What the models said of one clip: all that unrolling needs of them, here or on another machine."""

    tracks: Tracks
    geometry: GeometryEstimate
    depth: DepthEstimate | None = None
