"""Subjects found and followed: a detector's boxes on keyframes, SAM 2 masks over the clip, one identity per subject.

1. Boxes on keyframes spread over the clip. The keyframe with the most certain boxes prompts first; a later keyframe
   prompts only the boxes that no track fills yet.
2. Tracks that cover the same pixels are one; tracks never seen together that look alike are one that came back.
3. What a subject rides joins it. A "subject" that obeys the background's geometry (a poster) is none.
"""

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from engine.options import option
from engine.perception.compute import spread
from engine.perception.detector import Detection, DetectorOptions
from engine.perception.motion import residual_motions
from engine.perception.tracklets import (
    Box,
    Group,
    Tracklet,
    already_followed,
    merge_duplicates,
    merge_returns,
    rider_of,
)
from engine.types import Clip, SubjectTrack, Tracks


class Finder(Protocol):
    """Boxes on frames."""

    about: dict

    def detect(self, clip: Clip, keyframes: list[int]) -> list[Detection]: ...


class Follower(Protocol):
    """Masks from boxes: logits float16 [n,T,h,w] over the clip, the frame stretched to h x w."""

    about: dict

    def follow(self, clip: Clip, frame: int, boxes: list[Box]) -> np.ndarray: ...

    def release(self, clip: Clip) -> None: ...


@dataclass
class TrackerOptions:
    subjects: int = option(8, "most subjects of a clip; the largest over the clip are kept, the others stay dynamic")
    same: float = option(0.5, "IoU from which a box is already followed, or two tracks are one")
    returns: float = option(
        0.32,
        "largest Hellinger distance of colours at which a track that ended goes on in a later one; on real clips the "
        "halves of one person's track lie 0.16 to 0.25 apart (small bystanders 0.4), two people 0.38 to 0.59",
    )
    least_area: float = option(0.0004, "share of the frame below which a mask is nothing (160 pixels at 480x832)")
    least_frames: int = option(3, "frames a subject must be seen in")
    verify: bool = option(True, "drop what obeys the background's geometry: a poster of a person is not a subject")
    still: float = option(0.0018, "largest residual motion of a still thing, share of the width (1.5 px at 832 wide)")
    still_points: int = option(20, "corners needed to call a thing still; with fewer it stays a subject")


class FoundationTracker:
    """A Finder and a Follower as a Tracker."""

    def __init__(self, options: TrackerOptions, prompts: DetectorOptions, finder: Finder, follower: Follower) -> None:
        self.options, self.prompts, self.finder, self.follower = options, prompts, finder, follower

    def track(self, clip: Clip) -> Tracks:
        """Labelled masks over the clip. Labels follow the subjects' area over the clip, largest first."""
        least = self.options.least_area
        tracklets = self._follow_all(clip)
        self.follower.release(clip)
        groups: list[Group] = merge_duplicates(tracklets, self.options.same, least)
        if groups:
            size = groups[0].members[0].logits.shape[1:]
            small = np.stack([cv2.resize(f, size[::-1], interpolation=cv2.INTER_AREA) for f in clip.frames])
            groups = merge_returns(groups, small, self.options.returns, least)
        groups = [
            g for g in groups if np.any([m.visible(least) for m in g.members], 0).sum() >= self.options.least_frames
        ]
        masks = [full_size(g.logits(least), clip.size) for g in groups]

        people = [i for i, g in enumerate(groups) if g.prompt in self.prompts.subjects]
        things = [i for i, g in enumerate(groups) if g.prompt not in self.prompts.subjects]
        alive = self._alive(clip, masks)
        riders: dict[int, list[int]] = {i: [] for i in people}
        for i in things:
            n = rider_of(masks[i], [masks[p] for p in people], least)
            if n is not None:
                riders[people[n]].append(i)
        people = [i for i in people if any(alive[k] for k in (i, *riders[i]))]
        people.sort(key=lambda i: -int(masks[i].sum()))

        labels, dynamic = np.zeros(clip.frames.shape[:3], np.uint8), np.zeros(clip.frames.shape[:3], bool)
        for i, mask in enumerate(masks):
            if alive[i] or any(i in riders[p] for p in people):
                dynamic |= mask
        subjects = []
        for label, i in enumerate(people[: self.options.subjects], start=1):
            whole = np.any([masks[k] for k in (i, *riders[i])], 0)
            labels[whole & (labels == 0)] = label
            score = np.where((labels == label).any((1, 2)), groups[i].score, 0).astype(np.float32)
            subjects.append(SubjectTrack(label, groups[i].prompt, score))
        models = {"detector": self.finder.about, "sam2": self.follower.about}
        return Tracks(labels, dynamic | (labels > 0), tuple(subjects), models)

    def _follow_all(self, clip: Clip) -> list[Tracklet]:
        """One tracklet per box that was new when its keyframe's turn came."""
        keyframes = spread(len(clip.frames), self.prompts.keyframes)
        found = self.finder.detect(clip, keyframes)
        by_frame = {k: [d for d in found if d.frame == k] for k in keyframes}
        tracklets: list[Tracklet] = []
        for k in sorted(keyframes, key=lambda k: (-sum(d.score for d in by_frame[k]), k)):
            new = [d for d in by_frame[k] if not self._followed(d, tracklets, clip.size)]
            if new:
                logits = self.follower.follow(clip, k, [d.box for d in new])
                tracklets += [Tracklet(k, d.prompt, d.score, m) for d, m in zip(new, logits, strict=True)]
        return tracklets

    def _followed(self, found: Detection, tracklets: list[Tracklet], size: tuple[int, int]) -> bool:
        same_kind = [t for t in tracklets if t.prompt == found.prompt]
        return already_followed(found.box, found.frame, same_kind, size, self.options.same)

    def _alive(self, clip: Clip, masks: list[np.ndarray]) -> list[bool]:
        """Which masks hold something that moves against the background; all of them when verification is off."""
        if not self.options.verify or not masks:
            return [True] * len(masks)
        moving = np.any(masks, 0)
        motions = residual_motions(clip.frames, masks, moving)
        still = self.options.still * clip.size[1]
        return [m.points < self.options.still_points or m.residual > still for m in motions]


def full_size(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool [T,H,W] of logits [T,h,w] that show the frame stretched: bilinear, then the sign."""
    return np.stack(
        [cv2.resize(frame.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR) > 0 for frame in logits]
    )
