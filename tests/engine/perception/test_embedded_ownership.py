"""Skeletons against masks: who is to be believed, and to whom a pixel belongs; on figures drawn by hand."""

import cv2
import numpy as np
import pytest

from engine.geometry.camera import intrinsics
from engine.perception.embedded.link import Person, add_doubtful, join_pieces
from engine.perception.embedded.masks import paint_labels
from engine.perception.embedded.people import PeopleFinder, PeopleOptions
from engine.perception.embedded.pose import Body, Roi
from engine.perception.embedded.skeleton import limb_distance, limb_fit, part_distances, pixels_per_metre
from engine.perception.embedded.tracker import EmbeddedTracker, EmbeddedTrackerOptions

BONES = ((11, 13), (13, 15), (12, 14), (14, 16), (23, 25), (25, 27), (24, 26), (26, 28))
SIDE = 256  # of the region, so that a place of the crop is a pixel


def standing() -> np.ndarray:
    """World landmarks [33,3] in metres of somebody who stands with hanging arms; the hips are the origin."""
    world = np.zeros((33, 3), np.float32)
    world[:11] = (0, -0.70, 0)
    world[:11, 0] = np.linspace(-0.08, 0.08, 11)
    world[0] += (0, 0.05, 0)
    for side, k in ((1, 0), (-1, 1)):
        rows = {11: (0.2, -0.5), 13: (0.28, -0.22), 15: (0.3, 0.05), 23: (0.1, 0.0), 25: (0.11, 0.42), 27: (0.12, 0.82)}
        for joint, (x, y) in rows.items():
            world[joint + k, :2] = (side * x, y)
        world[[17 + k, 19 + k, 21 + k]] = world[15 + k] + np.float32([0, 0.08, 0])
        world[[29 + k, 31 + k]] = world[27 + k] + np.float32([[0, 0.05, 0], [0.03, 0.06, 0]])
    return world


def drawn(world: np.ndarray, scale: float, limb: float = 0.07) -> np.ndarray:
    """bool [SIDE,SIDE]: limbs as thick lines, torso and head, with the hips at the centre."""
    uv = world[:, :2] * scale + SIDE / 2
    out = np.zeros((SIDE, SIDE), np.uint8)
    for a, b in BONES:
        cv2.line(out, uv[a].astype(int).tolist(), uv[b].astype(int).tolist(), 1, max(1, round(2 * limb * scale)))
    cv2.fillConvexPoly(out, cv2.convexHull(uv[[11, 12, 24, 23]].astype(np.int32)), 1)
    cv2.circle(out, uv[0].astype(int).tolist(), round(0.14 * scale), 1, -1)
    return out > 0


def body(x: float, y: float, scale: float, world: np.ndarray | None = None, mask: np.ndarray | None = None) -> Body:
    """A body with its hips at (x, y) and `scale` pixels a metre; mask bool [SIDE,SIDE] about the hips."""
    world = standing() if world is None else world
    points = np.zeros((35, 2), np.float32)
    points[:33] = world[:, :2] * scale + (x, y)
    points[33], points[34] = (x, y), (x, y - scale)
    mask = drawn(world, scale) if mask is None else mask
    probability = np.where(mask, 0.95, 0.02).astype(np.float16)
    return Body(Roi(x, y, SIDE, 0.0), 0.95, points, np.ones(33, np.float32), world, probability)


def finder(frames: int = 8) -> PeopleFinder:
    """On frames without content and without motion."""
    still = np.zeros((frames - 1, 120, 208, 2), np.float16)
    return PeopleFinder(None, np.zeros((frames, 240, 416, 3), np.uint8), (still, still), 2, PeopleOptions(), 16.0)


def look() -> np.ndarray:
    out = np.zeros((3, 320), np.float32)
    out[:, 5] = 1
    return out


def test_distance_from_the_skeleton_is_in_metres():
    b = body(200, 120, 100)
    assert pixels_per_metre(b) == pytest.approx(100, rel=1e-6)
    away = limb_distance(b, (slice(0, 240), slice(0, 416)))
    assert away[100, 200] == 0  # inside the torso
    shin = away[180, 212:252]
    np.testing.assert_allclose(np.diff(shin)[8:], 0.01, rtol=0.1)  # a pixel further is a centimetre further
    half = limb_distance(b, (slice(0, 120), slice(0, 208)), 0.5)
    np.testing.assert_allclose(half[60, 30], away[120, 60], atol=0.03)
    parts = part_distances(b, (slice(0, 240), slice(0, 416)))
    np.testing.assert_array_equal(parts.min(0), away)
    assert parts[:, 175, 211].argmin() == 5  # a shin


def test_a_silhouette_fits_its_skeleton_and_a_crown_does_not():
    world = standing()
    crown = cv2.circle(np.zeros((SIDE, SIDE), np.uint8), (128, 80), 90, 1, -1) > 0
    for mask, low, high in ((drawn(world, 100), 0.95, 1.0), (crown, 0.0, 0.55)):
        b = body(128, 128, 100, world, mask)
        assert low <= limb_fit(mask, limb_distance(b, (slice(0, SIDE), slice(0, SIDE)))) <= high


def test_a_mask_that_took_in_something_else_is_a_worse_picture():
    tracker = EmbeddedTracker.__new__(EmbeddedTracker)  # without its networks
    tracker.options = EmbeddedTrackerOptions()
    someone, labels = Person({t: body(120, 130, 80) for t in range(2)}), np.zeros((2, 240, 416), np.uint8)
    part, where = someone.bodies[0].paste(240, 416)
    labels[:, where[0], where[1]][:, part > 0.5] = 1
    labels[1, 60:140, 150:220] = 1
    alone, crowded = tracker._subject(1, someone, intrinsics(400.0, 400.0, 416, 240), labels).score
    assert alone > 0.8
    assert crowded < 0.8 * alone


def test_neither_a_blob_nor_what_shakes_is_credible():
    f, crown = finder(), cv2.circle(np.zeros((SIDE, SIDE), np.uint8), (128, 100), 95, 1, -1) > 0
    calm, blob, shaking = Person(), Person(), Person()
    rng = np.random.default_rng(0)
    for t in range(8):
        calm.add(t, body(200, 120, 80), look())
        blob.add(t, body(200, 120, 80, mask=crown), look())
        jump = rng.normal(0, 40, 2)
        moved = body(200 + jump[0], 120 + jump[1], 80)
        shaking.add(t, moved, look(), f._step(shaking.bodies[t - 1], moved, t - 1, t) if t else None)
    least = f.options.min_credit
    assert f._credit(calm) > 0.9
    assert f._credit(blob) < least
    assert f._credit(shaking) < f._credit(calm) - 0.2
    assert f._step(body(200, 120, 80), body(220, 120, 80), 0, 1) == pytest.approx(20 / 200)


def test_somebody_seen_shortly_is_dynamic_and_no_subject(monkeypatch):
    f = finder(33)
    followed, passing, noise = Person(), Person(), Person()
    for t in range(20):
        followed.add(t, body(100, 120, 80), look())
    for t in range(20, 26):
        passing.add(t, body(330, 120, 80), np.roll(look(), 9, 1))
    noise.add(2, body(330, 120, 80), np.roll(look(), 99, 1))
    monkeypatch.setattr(f, "_follow_all", lambda: [followed, passing, noise])
    monkeypatch.setattr(f, "_grow_backwards", lambda pieces: None)
    people, others = f.find()
    assert [len(p.bodies) for p in people] == [20]
    assert [len(p.bodies) for p in others] == [6]
    labels, dynamic = paint_labels(people + others, np.zeros((33, 240, 416, 3), np.uint8), 1)
    assert labels[22].max() == 0
    assert dynamic[22, 100, 330]


def test_a_doubtful_piece_fills_a_gap_and_founds_nobody():
    f = finder(33)
    before, after, gap, alone = (Person() for _ in range(4))
    for t in range(10):
        before.add(t, body(150, 120, 80), look())
        after.add(t + 14, body(152, 120, 80), look())
    gap.add(11, body(151, 120, 80), look())
    alone.add(11, body(330, 120, 80), np.roll(look(), 9, 1))
    people = add_doubtful(join_pieces([before, after], f._same, 0.45), [gap, alone], f._same, 0.45)
    assert [sorted(p.bodies) for p in people] == [[*range(10), 11, *range(14, 24)]]


def test_nobody_comes_three_times_as_near_unseen():
    f = finder(60)
    far, near, back = (Person() for _ in range(3))
    for t in range(10):
        far.add(t, body(150, 120, 40), look())
        near.add(t + 40, body(150, 120, 120), look())
        back.add(t + 40, body(150, 120, 55), look())
    assert len(join_pieces([far, near], f._same, 0.45)) == 2
    assert len(join_pieces([far, back], f._same, 0.45)) == 1


def test_a_mask_over_somebody_is_nobody_new():
    f = finder()
    crown = cv2.circle(np.zeros((SIDE, SIDE), np.uint8), (100, 128), 100, 1, -1) > 0
    assert f._covers(body(190, 120, 80, mask=crown), body(200, 120, 60))
    assert not f._covers(body(300, 120, 80), body(200, 120, 60))


def test_an_arm_in_front_of_somebody_stays_its_owners():
    """The far person's mask alone takes in the near one's forearm; skeleton, colours and nearness give it back."""
    world = standing()
    world[[15, 17, 19, 21]] = (0.72, -0.2, 0)  # the near one's left forearm points to the image's right
    near_mask, near_at, far_at = drawn(world, 100), (150, 120), (225, 100)
    forearm = np.zeros((SIDE, SIDE), np.uint8)
    uv = (world[:, :2] * 100 + SIDE / 2).astype(int)
    cv2.line(forearm, uv[13].tolist(), uv[15].tolist(), 1, 14)
    forearm = forearm > 0
    far_mask = drawn(standing(), 70)
    far_shape = far_mask.copy()
    moved = np.roll(forearm, (near_at[1] - far_at[1], near_at[0] - far_at[0]), (0, 1))
    near = body(*near_at, 100, world, near_mask & ~forearm)
    far = body(*far_at, 70, None, far_mask | moved)
    still = [body(*near_at, 100), body(330, 100, 70)]  # once apart, so that their colours are known

    def place(mask, x, y):
        full = np.zeros((240, 416), bool)
        rows, columns = np.nonzero(mask)
        rows, columns = rows + y - 128, columns + x - 128
        inside = (rows >= 0) & (rows < 240) & (columns >= 0) & (columns < 416)
        full[rows[inside], columns[inside]] = True
        return full

    frames = np.full((3, 240, 416, 3), 90, np.uint8)
    true = np.zeros((240, 416), np.uint8)
    true[place(far_shape, *far_at)], true[place(near_mask, *near_at)] = 2, 1
    apart = (drawn(standing(), 100), (330, 100))
    for t, (one, two) in enumerate((apart, (near_mask, far_at), apart)):
        frames[t][place(far_shape, *two)] = (30, 60, 160)
        frames[t][place(one, *near_at)] = (190, 120, 90)
    people = [Person({0: still[0], 1: near, 2: still[0]}), Person({0: still[1], 1: far, 2: still[1]})]
    labels, others = paint_labels(people, frames, 2)
    assert not others.any()
    arm = place(forearm, *near_at)
    assert (labels[1][arm & (labels[1] > 0)] == 1).mean() > 0.95
    both = (true > 0) & (labels[1] > 0)
    assert (labels[1][both] == true[both]).mean() > 0.97
    swapped, _ = paint_labels(people[::-1], frames, 2)  # whoever is painted last
    np.testing.assert_array_equal(swapped[1] > 0, labels[1] > 0)
    assert ((3 - swapped[1][both]) == labels[1][both]).mean() > 0.99


def test_the_skeleton_tells_people_of_one_colour_and_size_apart():
    """The neighbour's mask alone takes in a forearm that points at it; only the skeleton says whose it is."""
    world, empty = standing(), np.zeros((SIDE, SIDE), np.uint8)
    world[[15, 17, 19, 21]] = (0.72, -0.2, 0)
    uv = (world[:, :2] * 100 + SIDE / 2).astype(int)
    forearm = cv2.line(empty, uv[13].tolist(), uv[15].tolist(), 1, 14) > 0
    mask = drawn(world, 100)
    apart = 136  # pixels between the two: their limbs are 0.3 m apart at least
    other = body(150 + apart, 120, 100, None, drawn(standing(), 100) | np.roll(forearm, -apart, 1))
    people = [Person({0: body(150, 120, 100, world, mask & ~forearm)}), Person({0: other})]
    labels, _ = paint_labels(people, np.full((1, 240, 416, 3), 120, np.uint8), 2)
    rows, columns = np.nonzero(forearm & (np.arange(SIDE) < 128 + 60))  # up to the wrist
    assert (labels[0][rows + 120 - 128, columns + 150 - 128] == 1).mean() > 0.9


def test_a_like_coloured_face_elsewhere_is_not_taken():
    """Two people of one colour who do not meet keep what is theirs, however near one of them is."""
    frames = np.full((1, 240, 416, 3), (190, 120, 90), np.uint8)
    people = [Person({0: body(110, 120, 110)}), Person({0: body(250, 100, 50)})]
    labels, _ = paint_labels(people, frames, 2)
    assert set(np.unique(labels[0][:, 215:])) == {0, 2}
    assert set(np.unique(labels[0][:, :180])) == {0, 1}
