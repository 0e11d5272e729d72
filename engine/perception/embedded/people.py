"""People followed through a clip: short tracklets from frame to frame, then joined into identities by look and place.

A body is carried to the next frame by the dense flow under its mask and found again there by the landmark
network; the detector looks for new people every few frames. A tracklet ends when its body is lost or when it
slides onto somebody else; tracklets grow backwards from where they were detected; then the pieces of one person are
joined (`engine.perception.embedded.link`).
"""

from dataclasses import dataclass

import cv2
import numpy as np

from engine.options import option
from engine.perception.embedded.flow import pull, sample
from engine.perception.embedded.link import Person, add_doubtful, hellinger, join_pieces, look, overlap
from engine.perception.embedded.pose import CENTRE, JOINTS, RIM, Body, PoseNet, Roi
from engine.perception.embedded.skeleton import limb_distance, limb_fit


@dataclass
class PeopleOptions:
    detect_every: int = option(
        4, "frames between two runs of the detector; in between people are followed (16 fps: 0.25 s)"
    )
    detection_threshold: float = option(
        0.35, "least detector score of a proposal, 0..1; below the graph's 0.5 because the landmark network judges it"
    )
    new_presence: float = option(0.8, "least presence with which a new person is believed, 0..1")
    presence: float = option(
        0.5, "least presence that the landmark network must give a body, 0..1 (the released graph's value)"
    )
    tiles: list[float] = option(
        [1.0, 0.6], "edges of the detector's square tiles over the image's shorter side; neighbours overlap by a third"
    )
    min_height: float = option(
        0.08, "least height of a person over the image's height: smaller ones have too few pixels for a Gaussian"
    )
    min_seconds: float = option(
        0.75,
        "a person seen for less time in all is no subject and only dynamic, seconds: too short a path; posters pass "
        "for people as long",
    )
    min_score: float = option(0.6, "least mean presence of a kept person, 0..1")
    min_credit: float = option(
        0.57,
        "least credit of a person, 0..1: mean visibility of the landmarks inside the picture x share of the mask "
        "within 0.1 m of the skeleton, less twice the joints' shake, x share of frames at which the following did not "
        "break. Measured 0.21 to 0.55 on trees, cars and tables that pass for people, 0.58 to 0.94 on people. Pieces "
        "of less only fill a person's gaps",
    )
    max_subjects: int = option(
        8, "most people kept as subjects, by area x time x motion; the others only join the dynamic mask"
    )
    link_appearance: float = option(
        0.45, "largest colour distance (Hellinger, 0..1) at which two pieces may be one person"
    )


PASSING = 4  # frames of somebody who only passes: a quarter of a second at 16 fps, two runs of the detector


class PeopleFinder:
    """Follows the people of one clip. `frames` uint8 [T,H,W,3]; `forward`, `backward` flow at 1/`factor` size."""

    def __init__(
        self,
        net: PoseNet,
        frames: np.ndarray,
        flows: tuple[np.ndarray, np.ndarray],
        factor: int,
        options: PeopleOptions,
        fps: float,
    ) -> None:
        self.net, self.frames, self.options, self.fps = net, frames, options, fps
        self.forward, self.backward = flows
        self.factor = factor
        self.height, self.width = frames.shape[1:3]
        self._lab = {}
        self._small: dict[int, np.ndarray] = {}  # id(body) -> mask at flow size
        self._fits: dict[int, float] = {}  # id(body) -> how well mask and skeleton agree
        self._keep: list[Body] = []  # bodies whose small mask is cached, so that their ids stay theirs

    def find(self) -> tuple[list[Person], list[Person]]:
        """Identities, most important first, and people who are seen too shortly to be followed."""
        pieces = self._follow_all()
        self._grow_backwards(pieces)
        pieces = [p for p in pieces if p.bodies]
        sure = [p for p in pieces if self._credit(p) >= self.options.min_credit]
        people = join_pieces(sure, self._same, self.options.link_appearance)
        people = sorted((p for p in people if self._reliable(p)), key=lambda p: -self._area(p))
        need = min(round(self.options.min_seconds * self.fps), -(-len(self.frames) // 2))
        kept = [p for p in people if len(p.bodies) >= need]
        passing = [p for p in people if PASSING <= len(p.bodies) < need]
        doubtful = [p for p in pieces if not any(p is q for q in sure)]
        return add_doubtful(kept, doubtful, self._same, self.options.link_appearance), passing

    # --- frame to frame

    def _follow_all(self) -> list[Person]:
        done: list[Person] = []
        active: list[Person] = []
        for t in range(len(self.frames)):
            survivors = []
            for person in active:
                body = self._carry(person.bodies[t - 1], t - 1, t)
                if body is None:
                    done.append(person)
                else:
                    person.add(t, body, self._look(body, t), self._step(person.bodies[t - 1], body, t - 1, t))
                    survivors.append(person)
            active = self._part(survivors, t, done)
            if t % self.options.detect_every == 0:
                for body in self._detect(t, [p.bodies[t] for p in active]):
                    person = Person()
                    person.add(t, body, self._look(body, t))
                    active.append(person)
        return done + active

    def _grow_backwards(self, pieces: list[Person]) -> None:
        for person in sorted(pieces, key=lambda p: (p.first, -len(p.bodies))):
            while (t := person.first - 1) >= 0:
                body = self._carry(person.bodies[t + 1], t + 1, t)
                others = [p.bodies[t] for p in pieces if t in p.bodies]
                if body is None or any(self._same(body, other) for other in others):
                    break
                look = self._look(body, t)
                if hellinger(look, person.look) > self.options.link_appearance:
                    break
                person.add(t, body, look, self._step(person.bodies[t + 1], body, t + 1, t))

    def _carry(self, body: Body, t: int, to: int) -> Body | None:
        """The body of frame t in its neighbour frame `to`, or None when it is not seen there."""
        flow = self._flow(t, to)
        mask = self._mask(body)
        if mask.sum() < 8:  # eight pixels of the flow map: too few for a median
            return None
        shift = np.median(flow[mask].astype(np.float32), 0) * self.factor
        roi = Roi.around(body.points[CENTRE] + shift, body.points[RIM] + shift)
        found = self._accept(self.net.landmarks(self.frames[to], roi), to)
        if found is None:
            return None
        carried = pull(mask.astype(np.float32), self._flow(to, t)) > 0.5
        size_ratio = found.next_roi.size / body.next_roi.size
        # Between neighbouring frames a person's silhouette keeps at least a third of its overlap under its own
        # flow, and its size within 1.5; otherwise the region slid onto something else.
        if overlap(self._mask(found), carried) < 0.33 or not 0.66 < size_ratio < 1.5:
            return None
        return found

    def _flow(self, t: int, to: int) -> np.ndarray:
        """Flow of frame t to its neighbour frame `to`."""
        return self.forward[t] if to > t else self.backward[to]

    def _step(self, body: Body, found: Body, t: int, to: int) -> float:
        """How far a body's joints left the image's motion on the way from frame t to its neighbour `to`: the median
        over the sure joints inside the picture, as a share of the region's edge, in a sixteenth of a second. 0.005 to
        0.015 on people, 0.026 on a break-dancer, 0.02 to 0.1 where the network sees somebody in a car (measured)."""
        joints = np.flatnonzero(self._sure(body))
        if not len(joints):
            return 0.0
        moved = sample(self._flow(t, to), body.points[joints] / self.factor).astype(np.float32) * self.factor
        off = np.linalg.norm(found.points[joints] - body.points[joints] - moved, axis=1)
        return float(np.median(off)) / body.next_roi.size * self.fps / 16

    def _part(self, people: list[Person], t: int, done: list[Person]) -> list[Person]:
        """End the tracklets that slid onto another person's body: the owner that looks more like itself, and
        more like a person, keeps it."""
        keep = list(people)
        for i, a in enumerate(people):
            for b in people[i + 1 :]:
                if a not in keep or b not in keep or not self._same(a.bodies[t], b.bodies[t]):
                    continue
                cost_a, cost_b = (
                    hellinger(self._look(p.bodies[t], t), p.look) - self._credit(p) - 0.002 * len(p.bodies)
                    for p in (a, b)
                )
                loser = a if cost_a > cost_b else b
                keep.remove(loser)
                loser.bodies.pop(t)
                if loser.bodies:
                    done.append(loser)
        return keep

    def _detect(self, t: int, known: list[Body]) -> list[Body]:
        """New bodies of frame t, those already known left out. The landmark network judges the detector's proposals;
        of those that show one person the surest stays, and of equally sure ones the largest (not just its head)."""
        proposals: list[Body] = []
        for roi, _ in self.net.detect(self.frames[t], self._tiles(), self.options.detection_threshold):
            body = self.net.landmarks(self.frames[t], roi)
            if body.presence < 0.5 * self.options.presence:
                continue
            body = self._accept(self.net.landmarks(self.frames[t], body.next_roi), t)
            if body is not None and body.presence >= self.options.new_presence:
                proposals.append(body)
        proposals.sort(key=lambda b: (-round(b.presence, 1), -float(self._mask(b).sum())))
        found: list[Body] = []
        for body in proposals:
            if not any(self._same(body, other) or self._covers(body, other) for other in known + found):
                found.append(body)
        return found

    def _tiles(self) -> list[tuple[int, int, int]]:
        """The letterboxed frame and overlapping squares (x, y, side)."""
        h, w = self.height, self.width
        side = max(h, w)
        tiles = [((w - side) // 2, (h - side) // 2, side)]
        for share in self.options.tiles:
            edge = round(share * min(h, w))
            xs, ys = (np.linspace(0, n - edge, 1 + int(np.ceil(1.5 * (n / edge - 1)))) for n in (w, h))
            tiles += [(round(x), round(y), edge) for y in ys for x in xs]
        return tiles

    def _accept(self, body: Body, t: int) -> Body | None:
        """The body when it is a plausible person in the image, else None."""
        if body.presence < self.options.presence or body.roi.size < 8:
            return None
        mask = self._mask(body)
        rows = np.flatnonzero(mask.any(1))
        if not len(rows) or (rows[-1] - rows[0] + 1) * self.factor < self.options.min_height * self.height:
            return None
        sure = self._sure(body)
        # A torso or a head at least must be seen: six sure joints, most of them on the silhouette.
        if sure.sum() < 6:
            return None
        grown = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8))
        return body if sample(grown, body.points[:JOINTS][sure] / self.factor).mean() > 0.6 else None

    def _sure(self, body: Body) -> np.ndarray:
        """bool [33]: the joints that are seen inside the picture."""
        points = body.points[:JOINTS]
        return ((points >= 0) & (points < (self.width, self.height))).all(1) & (body.visibility > 0.5)

    # --- compare

    def _mask(self, body: Body) -> np.ndarray:
        """bool mask of a body at flow size."""
        if id(body) not in self._small:
            h, w = (
                (self.forward.shape[1:3])
                if len(self.forward)
                else (round(self.height / self.factor), round(self.width / self.factor))
            )
            mask = np.zeros((h, w), bool)
            part, (ys, xs) = body.paste(self.height, self.width, 1 / self.factor)
            mask[ys, xs] = (part > 0.5)[: h - ys.start, : w - xs.start]
            self._small[id(body)] = mask
            self._keep.append(body)
        return self._small[id(body)]

    def _same(self, a: Body, b: Body) -> bool:
        """Whether two bodies of one frame are one person: silhouettes agree, or one holds the other at like place."""
        A, B = self._mask(a), self._mask(b)
        both = (A & B).sum()
        small, union = min(A.sum(), B.sum()), (A | B).sum()
        if union == 0:
            return True
        distance = np.linalg.norm(a.points[:JOINTS] - b.points[:JOINTS], axis=1)
        near = np.median(distance) < 0.1 * max(a.next_roi.size, b.next_roi.size)
        return both > 0.5 * union or both > 0.75 * small or (near and both > 0.3 * union)

    def _covers(self, body: Body, other: Body) -> bool:
        """Whether a mask takes in much of somebody else's: two people in sight do not share half of their pixels."""
        theirs = self._mask(other)
        return (self._mask(body) & theirs).sum() > 0.4 * max(theirs.sum(), 1)

    def _look(self, body: Body, t: int) -> np.ndarray:
        if t not in self._lab:
            size = (self._mask(body).shape[1], self._mask(body).shape[0])
            small = cv2.resize(self.frames[t], size, interpolation=cv2.INTER_AREA)
            self._lab = {t: cv2.cvtColor(small, cv2.COLOR_RGB2LAB)}  # one frame at a time is looked at
        return look(self._lab[t], self._mask(body), body, self.factor)

    # --- identities

    def _credit(self, person: Person) -> float:
        """How much a person is to be believed, 0..1; see `PeopleOptions.min_credit`."""
        size = (self.width, self.height)
        values = [body.clarity(size) * self._fit(body) for body in person.bodies.values()]
        return person.continuity * (float(np.mean(values)) - 2 * person.shake)

    def _fit(self, body: Body) -> float:
        """How well a body's mask and its skeleton agree; see `limb_fit`."""
        mask = self._mask(body)
        if id(body) not in self._fits:
            x, y, w, h = cv2.boundingRect(mask.astype(np.uint8))
            where = (slice(y, y + h), slice(x, x + w))
            self._fits[id(body)] = limb_fit(mask[where], limb_distance(body, where, 1 / self.factor)) if w else 0.0
        return self._fits[id(body)]

    def _reliable(self, person: Person) -> bool:
        presence = np.mean([b.presence for b in person.bodies.values()])
        return presence >= self.options.min_score and self._credit(person) >= self.options.min_credit

    def _area(self, person: Person) -> float:
        """Pixels of the flow map that a person covers, over all frames."""
        return sum(float(self._mask(body).sum()) for body in person.bodies.values())
