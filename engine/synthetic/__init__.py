"""Rendered worlds with exact ground truth: textured streets and rooms, walking people, cameras they carry."""

from engine.synthetic.perceive import oracle_from_view
from engine.synthetic.render import View, render
from engine.synthetic.world import World, make_world

__all__ = ["View", "World", "make_world", "oracle_from_view", "render"]
