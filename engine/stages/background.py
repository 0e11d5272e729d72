"""Anchor and holistic backgrounds from the same depth, poses and scale."""

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np

from engine.geometry.cloud import (
    Fused,
    Views,
    agreed,
    back_project,
    beside_edge,
    clean_depth,
    fuse,
    point_size,
    review,
)
from engine.options import option
from engine.types import Camera, Clip, Cloud, Scene


@dataclass
class BackgroundOptions:
    max_points: int = option(1_000_000, "points of the holistic cloud at most; the pixel grain coarsens to meet it")
    frames: int = option(41, "frames fused into the holistic cloud, spread over the clip; 0 = all")
    unseen: int = option(
        8,
        "frames; a subject without a mask between two sightings at most this far apart was missed, and such a frame is "
        "not fused: it would leave the subject's picture in the background (0.5 s at 16 fps); 0 = fuse all",
    )
    median: int = option(5, "side in pixels of the depth median that removes flying pixels: 0 (off), 3 or 5")
    flying: float = option(0.1, "relative deviation from that median above which a pixel is dropped")
    rim: int = option(
        3,
        "pixels at outlines: so many beyond the static ones, across depth edges, count where they are on one side; so "
        "many inside a person's do not tell what stands before the person",
    )
    rim_tolerance: float = option(0.04, "relative distance from that side's depth; blended edge pixels lie further off")
    anchor_tolerance: float = option(
        0.3,
        "a point of the anchor counts as seen through where another frame's depth is this much larger (relative): the "
        "far scenery of a single frame is off by less, the ghosts beside people by more",
    )
    min_confidence: float = option(0.05, "pixels below this depth confidence (0..1) are left out")
    threads: int = option(1, "threads that render while fusing")


def build_backgrounds(
    clip: Clip, scene: Scene, camera: Camera, dilation: float, options: BackgroundOptions
) -> tuple[Cloud, Cloud]:
    """(anchor, holistic) clouds of the clip's static world.

    Anchor: the static pixels of frame 0. Holistic: those of `options.frames` frames without a missed subject. Both use
    scene.depth * camera.scale_t and the same poses, and hold no point that more frames see through than confirm.
    `dilation` is the growth of the dynamic mask that made scene.static, as a share of the width
    (`SceneOptions.dilation`). Either may be empty when nothing static has depth.
    """
    views = Views(
        depth=scene.depth,
        confidence=scene.confidence,
        static=_background(scene, dilation, options),
        subject=_inside(scene.tracks.labels, options.rim),
        sky=scene.sky,
        K=camera.K,
        c2w=camera.c2w,
        scale=camera.scale_t,
    )
    whole = whole_frames(scene.tracks.labels, len(scene.tracks.subjects), options.unseen)
    count = len(whole) if options.frames <= 0 else min(options.frames, len(whole))
    frames = whole[np.unique(np.rint(np.linspace(0, len(whole) - 1, count)).astype(int))]
    fused, grain, tolerance = fuse(views, frames, options.max_points, options.median, options.flying, options.threads)
    return _anchor(clip, views, frames, options), _holistic(clip, views, frames, fused, grain, tolerance)


def whole_frames(labels: np.ndarray, subjects: int, unseen: int) -> np.ndarray:
    """Frame indices int64 in which none of the subjects 1..N of labels uint8 [T,H,W] is missing between two sightings
    at most `unseen` frames apart. A longer absence is believed (hidden, out of sight)."""
    missed = np.zeros(len(labels), bool)
    for label in range(1, subjects + 1):
        seen = np.flatnonzero((labels == label).any((1, 2)))
        for before, after in pairwise(seen):
            if after - before <= unseen:
                missed[before + 1 : after] = True
    return np.flatnonzero(~missed)


def _background(scene: Scene, dilation: float, options: BackgroundOptions) -> np.ndarray:
    """bool [T,H,W]: the static pixels, and those that scene.static leaves out only because a depth edge is near."""
    width = scene.depth.shape[2]
    ellipse = cv2.MORPH_ELLIPSE
    reach = max(1, round(dilation * width))
    far = cv2.getStructuringElement(ellipse, (2 * reach + 1, 2 * reach + 1))
    near = cv2.getStructuringElement(ellipse, (2 * options.rim + 1, 2 * options.rim + 1))
    out = scene.static & (scene.confidence >= options.min_confidence)
    if options.rim <= 0:
        return out
    for t, static in enumerate(out):
        moving = cv2.dilate(scene.tracks.dynamic[t].astype(np.uint8), far) > 0
        rim = (cv2.dilate(static.astype(np.uint8), near) > 0) & ~static & ~moving & ~scene.sky[t]
        rim &= scene.confidence[t] >= options.min_confidence
        static |= rim & beside_edge(scene.depth[t], options.rim, options.rim_tolerance)
    return out


def _inside(labels: np.ndarray, rim: int) -> np.ndarray:
    """bool [T,H,W]: pixels of subjects further than `rim` pixels from the outlines, where depth may be blended."""
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * rim + 1, 2 * rim + 1))
    return np.stack([cv2.erode((frame > 0).astype(np.uint8), kernel) > 0 for frame in labels])


def _anchor(clip: Clip, views: Views, frames: np.ndarray, options: BackgroundOptions) -> Cloud:
    depth = clean_depth(views.depth[0], options.median, options.flying) * np.float32(views.scale[0])
    seen = views.static[0] & (depth > 0)
    xyz = back_project(depth, seen, views.K[0], views.c2w[0])
    frame = np.zeros(len(xyz), np.int32)
    keep = agreed(xyz, frame, views, frames, options.anchor_tolerance)
    xyz, frame = xyz[keep], frame[keep]
    return Cloud(xyz, clip.frames[0][seen][keep], frame, point_size(xyz, frame, views.K, views.c2w))


def _holistic(clip: Clip, views: Views, frames: np.ndarray, fused: Fused, grain: float, tolerance: float) -> Cloud:
    keep, rgb = review(fused, views, clip.frames, frames, tolerance)
    xyz, frame = fused.xyz[keep], fused.frame[keep]
    return Cloud(xyz, rgb[keep], frame, point_size(xyz, frame, views.K, views.c2w, grain), grain)
