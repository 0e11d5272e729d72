"""Pieces of followed people joined into identities, by look, place and size.

One assignment chains the pieces that follow one another (re-entry after occlusion); then two people whose frames
interleave are one when every change from the one to the other costs little and no frame shows both in two places.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from engine.perception.embedded.pose import CENTRE, LEFT_HIP, LEFT_SHOULDER, RIGHT_HIP, RIGHT_SHOULDER, Body

Same = Callable[[Body, Body], bool]  # whether two bodies of one frame are one person


@dataclass
class Person:
    """One followed person: the body in every frame where it was seen, its mean look, of how many pieces it is, and for
    each step from frame to frame how far its joints left the image's own motion (`steps`, shares of the region)."""

    bodies: dict[int, Body] = field(default_factory=dict)
    look: np.ndarray | None = None
    pieces: int = 1
    steps: list[float] = field(default_factory=list)

    @property
    def first(self) -> int:
        return min(self.bodies)

    @property
    def last(self) -> int:
        return max(self.bodies)

    def add(self, t: int, body: Body, look: np.ndarray, step: float | None = None) -> None:
        """Add a frame; the look is the running mean over frames."""
        n = len(self.bodies)
        self.look = look if self.look is None else (self.look * n + look) / (n + 1)
        self.bodies[t] = body
        if step is not None:
            self.steps.append(step)

    def size_near(self, t: int) -> float:
        """Edge of the region in pixels, median over the ten nearest frames: a body half out of the picture misleads."""
        near = sorted(self.bodies, key=lambda s: abs(s - t))[:10]
        return float(np.median([self.bodies[s].next_roi.size for s in near]))

    @property
    def shake(self) -> float:
        """Median of the steps; 0 where there is none."""
        return float(np.median(self.steps)) if self.steps else 0.0

    @property
    def continuity(self) -> float:
        """Share of the frames at which the following did not break: 1 for one piece."""
        return 1 - (self.pieces - 1) / len(self.bodies)

    def joined(self, other: "Person") -> "Person":
        """This person with the other's frames; where both were seen, the surer body."""
        bodies = dict(self.bodies)
        for t, body in other.bodies.items():
            if t not in bodies or body.presence > bodies[t].presence:
                bodies[t] = body
        n, m = len(self.bodies), len(other.bodies)
        return Person(
            bodies, (self.look * n + other.look * m) / (n + m), self.pieces + other.pieces, self.steps + other.steps
        )


def join_pieces(pieces: list[Person], same: Same, appearance: float) -> list[Person]:
    """The people of a clip, earliest first.

    pieces      followed without a break, in any order
    appearance  largest `distance` of two looks at which two pieces may be one person
    """
    pieces = sorted((p for p in pieces if p.bodies), key=lambda p: (p.first, -len(p.bodies)))
    return _merge(_chain(pieces, appearance), same, appearance)


def _chain(pieces: list[Person], appearance: float) -> list[Person]:
    """Pieces chained by the assignment of ends to later starts that costs least."""
    cost = np.full((len(pieces), len(pieces)), 1e3)
    for i, a in enumerate(pieces):
        for j, b in enumerate(pieces):
            if a.last < b.first:
                cost[i, j] = change_cost(a, a.last, b, b.first, appearance)
    rows, columns = linear_sum_assignment(cost)
    successor = {i: j for i, j in zip(rows, columns, strict=True) if cost[i, j] < 1}
    people, taken = [], set(successor.values())
    for i, person in enumerate(pieces):
        if i in taken:
            continue
        while (j := successor.get(i)) is not None:
            person, i = person.joined(pieces[j]), j
        people.append(person)
    return people


def _merge(people: list[Person], same: Same, appearance: float) -> list[Person]:
    """People joined in pairs, cheapest first, until no pair is one person."""
    people = list(people)
    while True:
        pairs = [
            (merge_cost(a, b, same, appearance), i, j)
            for i, a in enumerate(people)
            for j, b in enumerate(people)
            if i < j
        ]
        cost, i, j = min(pairs, default=(1e3, 0, 0))
        if cost >= 1:
            return people
        people[i] = people[i].joined(people.pop(j))


def add_doubtful(people: list[Person], pieces: list[Person], same: Same, appearance: float) -> list[Person]:
    """The people with those pieces that fit well into their gaps: no more than 0.6 of what would join them, since a
    doubtful piece may be nobody."""
    people = list(people)
    for piece in sorted(pieces, key=lambda p: (p.first, -len(p.bodies))):
        costs = [(merge_cost(person, piece, same, appearance), i) for i, person in enumerate(people)]
        cost, i = min(costs, default=(1e3, 0))
        if cost < 0.6:
            people[i] = people[i].joined(piece)
    return people


def merge_cost(a: Person, b: Person, same: Same, appearance: float) -> float:
    """Below 1 when two people whose frames may interleave are one: the mean cost of the changes from one to the other.

    A frame that shows them in two places speaks against it, one that shows them in one place for it; together they may
    not speak against. One change that cannot be (place, size or look) is enough to keep them apart.
    """
    common = a.bodies.keys() & b.bodies.keys()
    if common and np.mean([same(a.bodies[t], b.bodies[t]) for t in common]) <= 0.5:
        return 1e3
    owner = sorted([(t, 0) for t in a.bodies if t not in common] + [(t, 1) for t in b.bodies if t not in common])
    changes = [(s, t, p) for (s, p), (t, q) in itertools.pairwise(owner) if p != q]
    costs = [change_cost((a, b)[p], s, (b, a)[p], t, appearance) for s, t, p in changes]
    if not costs:
        return distance(a.look, b.look) / appearance  # wherever the one was seen the other was too
    return 1e3 if max(costs) >= 1 else float(np.mean(costs))


def change_cost(a: Person, s: int, b: Person, t: int, appearance: float) -> float:
    """Below 1 when b's body of frame t may continue a's of the earlier frame s: colour distance and the jump in place
    and size, each over its limit."""
    colour = distance(a.look, b.look) / appearance
    end, start = a.bodies[s], b.bodies[t]
    before, after = a.size_near(s), b.size_near(t)
    size = 0.5 * (before + after)
    gap = t - s
    jump = np.linalg.norm(start.points[CENTRE] - end.points[CENTRE])
    reach = size * (0.3 + 0.1 * gap)  # a body length in about a quarter of a second, at 16 fps, plus the camera
    grown = abs(np.log(after / before))
    zoom = grown / (0.4 + 0.05 * gap)
    if colour > 1 or jump > 3 * reach or zoom > 2 or grown > 0.8:  # nobody comes twice as near unseen
        return 1e3
    return 0.6 * colour + 0.2 * min(jump / reach, 3) / 3 + 0.2 * min(zoom, 2) / 2


def look(lab: np.ndarray, mask: np.ndarray, body: Body, factor: int) -> np.ndarray:
    """Colour histograms of head, torso and legs, float32 [3,320], each summing to 1 (or 0 where too little is seen).

    lab uint8 [h,w,3]; mask bool [h,w]; 5 x 8 x 8 bins of L, a, b, the chroma bins 10 units wide around grey.
    """
    ys, xs = np.nonzero(mask)
    shoulders = body.points[[LEFT_SHOULDER, RIGHT_SHOULDER]].mean(0) / factor
    hips = body.points[[LEFT_HIP, RIGHT_HIP]].mean(0) / factor
    axis = hips - shoulders
    along = ((np.stack([xs, ys], -1) + 0.5 - shoulders) @ axis) / max(float(axis @ axis), 1e-6)
    part = (along > 0).astype(int) + (along > 1)
    bins = _bins(lab[ys, xs])
    out = np.stack([np.bincount(bins[part == k], minlength=320) for k in range(3)]).astype(np.float32)
    total = out.sum(1, keepdims=True)
    return np.where(total >= 6, out / np.maximum(total, 1), 0).astype(np.float32)


def colours(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Colour histogram float32 [1,320] of the pixels of a frame uint8 [h,w,3] RGB under a mask, in the bins of `look`;
    it sums to 1, or to 0 where too little is seen."""
    lab = cv2.cvtColor(frame, cv2.COLOR_RGB2LAB)
    count = np.bincount(_bins(lab[mask]), minlength=320).astype(np.float32)[None]
    return count / count.sum() if count.sum() >= 6 else np.zeros_like(count)


def _bins(lab: np.ndarray) -> np.ndarray:
    """int [n] bins of pixels uint8 [n,3]."""
    L, a, b = lab.astype(int).T
    return (L // 52) * 64 + np.clip((a - 88) // 10, 0, 7) * 8 + np.clip((b - 88) // 10, 0, 7)


def hellinger(a: np.ndarray, b: np.ndarray) -> float:
    """Hellinger distance in [0,1] of two looks, mean over the parts that both have (0.5 when there is none)."""
    common = (a.sum(1) > 0) & (b.sum(1) > 0)
    if not common.any():
        return 0.5
    p, q = (x[common] / x[common].sum(1, keepdims=True) for x in (a, b))
    return float(np.sqrt(np.clip(1 - np.sqrt(p * q).sum(1), 0, 1)).mean())


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Hellinger distance in [0,1] of two looks, half by parts and half as a whole: the whole does not care which part
    the landmarks of somebody upside down took for the legs."""
    whole = hellinger(a.sum(0, keepdims=True), b.sum(0, keepdims=True))
    return 0.5 * (hellinger(a, b) + whole)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two bool masks; 0 when both are empty."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 0.0
