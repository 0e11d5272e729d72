"""Perception without downloads: real networks that come inside wheels, and classical geometry, on a CPU."""

from engine.perception.embedded.geometry import EmbeddedGeometry, EmbeddedGeometryOptions
from engine.perception.embedded.tracker import EmbeddedTracker, EmbeddedTrackerOptions

__all__ = ["EmbeddedGeometry", "EmbeddedGeometryOptions", "EmbeddedTracker", "EmbeddedTrackerOptions"]
