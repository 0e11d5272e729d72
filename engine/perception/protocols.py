"""The three things perception must answer about a clip, and the bundle of models that answers them.

Order: tracker, geometry (sees the tracks, so that moving things can be left out), depth (sees both). An
adapter owns its third-party imports and makes them inside `setup` or its constructor, never at module import.
"""

from typing import Protocol, runtime_checkable

from engine.types import Clip, DepthEstimate, GeometryEstimate, Tracks


@runtime_checkable
class Tracker(Protocol):
    """Finds the subjects of a clip and follows them: labelled masks over the clip."""

    def track(self, clip: Clip) -> Tracks: ...


@runtime_checkable
class Geometry(Protocol):
    """Intrinsics and metric depth of every frame."""

    def geometry(self, clip: Clip, tracks: Tracks) -> GeometryEstimate: ...


@runtime_checkable
class Depth(Protocol):
    """Dense, temporally smooth depth or disparity of every frame. None when geometry's depth is all there is."""

    def depth(self, clip: Clip, tracks: Tracks, geometry: GeometryEstimate) -> DepthEstimate | None: ...
