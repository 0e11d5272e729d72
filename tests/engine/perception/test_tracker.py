"""Identities from masks: a scripted detector and mask decoder stand in for the networks, all that follows is real."""

import cv2
import numpy as np
import pytest

from engine.perception.detector import Detection, DetectorOptions
from engine.perception.motion import residual_motion
from engine.perception.tracker import FoundationTracker, TrackerOptions
from engine.perception.tracklets import appearance, box_iou, hellinger, mask_box
from tests.engine.perception.small import make_clip

T, H, W = 21, 120, 208


class World:
    """Flat things that slide over a textured ground seen by a panning camera. `things`: name -> (colour, size, path).

    A path is a function of the frame giving the centre (x, y), or None where the thing is out of sight.
    """

    def __init__(self, things, pan=1.5, seed=0):
        rng = np.random.default_rng(seed)
        big = cv2.resize(
            rng.integers(0, 255, (H // 4, W // 2, 3), dtype=np.uint8), (2 * W, H), interpolation=cv2.INTER_CUBIC
        )
        self.masks = {name: np.zeros((T, H, W), bool) for name in things}
        frames = []
        for t in range(T):
            shift = int(pan * t)
            image = big[:, shift : shift + W].copy()
            for name, (colour, (w, h), path) in things.items():
                centre = path(t)
                if centre is None:
                    continue
                x0, y0 = int(centre[0] - w / 2), int(centre[1] - h / 2)
                x1, y1 = max(x0, 0), max(y0, 0)
                x2, y2 = min(x0 + w, W), min(y0 + h, H)
                skin = np.random.default_rng(len(name)).integers(-40, 40, (h // 4 + 1, w // 4 + 1, 3))
                skin = np.clip(np.array(colour) + np.repeat(np.repeat(skin, 4, 0), 4, 1)[:h, :w], 0, 255).astype(
                    np.uint8
                )
                image[y1:y2, x1:x2] = skin[y1 - y0 : y2 - y0, x1 - x0 : x2 - x0]
                for other in self.masks.values():
                    other[t, y1:y2, x1:x2] = False  # drawn over
                self.masks[name][t, y1:y2, x1:x2] = True
            frames.append(image)
        self.clip = make_clip(np.stack(frames))
        self.kinds = {name: name.split("_")[0] for name in things}


class ScriptedFinder:
    """Boxes of the truth on the keyframes it is asked for."""

    def __init__(self, world, doubles=1):
        self.about, self.world, self.doubles = {"scripted": True}, world, doubles

    def detect(self, clip, keyframes):
        found = []
        for k in keyframes:
            for name, mask in self.world.masks.items():
                box = mask_box(mask[k], (H, W))
                if box is not None and mask[k].sum() > 60:
                    found += [Detection(k, box, self.world.kinds[name], 0.9 - 0.1 * i) for i in range(self.doubles)]
        return found


class ScriptedFollower:
    """The truth's mask of the thing in a box, until it is out of sight: then, like a tracker that lost it, nothing."""

    def __init__(self, world, loses=True):
        self.about, self.world, self.loses, self.calls = {"scripted": True}, world, loses, []

    def follow(self, clip, frame, boxes):
        self.calls.append((frame, len(boxes)))
        return np.stack([self._one(frame, box) for box in boxes])

    def _one(self, frame, box):
        name = max(
            self.world.masks, key=lambda n: box_iou(mask_box(self.world.masks[n][frame], (H, W)) or (0, 0, 0, 0), box)
        )
        truth = self.world.masks[name]
        seen = truth.any((1, 2))
        if self.loses:
            for direction in (1, -1):
                t, lost = frame, False
                while 0 <= t < T:
                    lost |= not seen[t]
                    seen[t] &= not lost
                    t += direction
        logits = np.stack([cv2.resize(np.where(m, 8.0, -8.0), (64, 64), interpolation=cv2.INTER_AREA) for m in truth])
        logits[~seen] = -8
        return logits.astype(np.float16)

    def release(self, clip):
        pass


def track(world, doubles=1, loses=True, ridden=("bicycle",), **options):
    options.setdefault("verify", False)
    prompts = DetectorOptions(subjects=["person"], ridden=list(ridden), keyframes=5)
    follower = ScriptedFollower(world, loses)
    return FoundationTracker(TrackerOptions(**options), prompts, ScriptedFinder(world, doubles), follower).track(
        world.clip
    ), follower


def label_of(tracks, mask):
    """The label that covers most of a truth mask, per frame where it is seen."""
    return {int(np.bincount(tracks.labels[t][mask[t]]).argmax()) for t in range(T) if mask[t].sum() > 60}


RED, BLUE = (200, 40, 40), (40, 60, 210)


def crossing():
    return World(
        {
            "person_a": (RED, (22, 60), lambda t: (20 + 8 * t, 70)),
            "person_bb": (BLUE, (22, 60), lambda t: (190 - 8 * t, 74)),
        }
    )


def test_identities_survive_a_crossing():
    world = crossing()
    tracks, _ = track(world, loses=False)
    assert [s.label for s in tracks.subjects] == [1, 2]
    a, b = (label_of(tracks, world.masks[n]) for n in ("person_a", "person_bb"))
    assert len(a) == len(b) == 1
    assert a != b


def test_who_leaves_and_comes_back_keeps_the_label():
    """Both are out of sight for a while at different times; the mask decoder loses them and new tracks begin."""
    world = World(
        {
            "person_a": (RED, (22, 60), lambda t: None if 6 <= t <= 9 else (20 + 8 * t, 60)),
            "person_bb": (BLUE, (22, 60), lambda t: None if 12 <= t <= 14 else (190 - 3 * t, 80)),
        }
    )
    tracks, follower = track(world)
    assert len(follower.calls) > 1, "the script must make the tracker start anew"
    assert len(tracks.subjects) == 2
    for name in world.masks:
        assert len(label_of(tracks, world.masks[name])) == 1
    seen = np.array([(tracks.labels == s.label).any((1, 2)) for s in tracks.subjects])
    scores = np.array([s.score for s in tracks.subjects])
    assert ((scores > 0) == seen).all()
    assert not seen.all()


def test_two_boxes_on_one_person_are_one_subject():
    tracks, _ = track(crossing(), doubles=3, loses=False)
    assert len(tracks.subjects) == 2


def test_followed_boxes_are_not_prompted_again():
    _, follower = track(crossing(), loses=False)
    assert sum(n for _, n in follower.calls) == 2


def test_masks_match_the_truth_and_dynamic_contains_them():
    world = crossing()
    tracks, _ = track(world, loses=False)
    truth = np.any(list(world.masks.values()), 0)
    iou = ((tracks.labels > 0) & truth).sum() / ((tracks.labels > 0) | truth).sum()
    assert iou > 0.85  # a 64 x 64 mask of a 208 pixel wide frame
    assert (tracks.dynamic >= (tracks.labels > 0)).all()


def test_a_ridden_bicycle_joins_its_rider_and_a_parked_one_does_not():
    world = World(
        {
            "bicycle_parked": ((90, 200, 90), (30, 20), lambda t: (150 - 1.5 * t, 100)),
            "bicycle_ridden": ((220, 220, 60), (40, 20), lambda t: (30 + 6 * t, 92)),
            "person_a": (RED, (18, 40), lambda t: (30 + 6 * t, 66)),
        }
    )
    tracks, _ = track(world, loses=False)
    assert len(tracks.subjects) == 1
    assert label_of(tracks, world.masks["bicycle_ridden"]) == {1}
    assert label_of(tracks, world.masks["bicycle_parked"]) == {0}


def test_a_poster_is_no_subject_and_a_large_walker_is():
    """The poster slides with the panning camera exactly as the ground does."""
    world = World(
        {
            "person_poster": (BLUE, (36, 60), lambda t: (160 - 2 * t, 60)),
            "person_a": (RED, (90, 110), lambda t: (50 + 3 * t, 60 + 3 * np.sin(t))),
        },
        pan=2,
    )
    tracks, _ = track(world, loses=False, verify=True)
    assert len(tracks.subjects) == 1
    assert label_of(tracks, world.masks["person_a"]) == {1}
    assert not tracks.dynamic[:, 5:25, 100:].any() or label_of(tracks, world.masks["person_poster"]) == {0}
    both, _ = track(world, loses=False, verify=False)
    assert len(both.subjects) == 2


def test_nobody_gives_empty_tracks():
    world = World({"car_x": (RED, (30, 20), lambda t: None)})
    tracks, _ = track(world)
    assert tracks.subjects == ()
    assert not tracks.labels.any()
    assert tracks.labels.dtype == np.uint8


def test_only_so_many_subjects_and_the_rest_stays_dynamic():
    world = World(
        {
            f"person_{'x' * (i + 1)}": ((40 * i, 90, 200 - 40 * i), (20, 40), lambda t, i=i: (25 + 38 * i, 60))
            for i in range(5)
        }
    )
    tracks, _ = track(world, loses=False, subjects=3)
    assert len(tracks.subjects) == 3
    assert tracks.labels.max() == 3
    assert tracks.dynamic.sum() > 1.4 * (tracks.labels > 0).sum()


def test_looks_tell_people_apart():
    world = crossing()
    a, b = (np.where(world.masks[n], 5.0, -5.0) for n in ("person_a", "person_bb"))
    first, second = appearance(a[:8], world.clip.frames[:8], 0), appearance(a[14:], world.clip.frames[14:], 0)
    assert hellinger(first, second) < 0.3 < 0.6 < hellinger(first, appearance(b, world.clip.frames, 0))


def parallax_world(moves: bool):
    """A camera that translates past a wall and, nearer, a picture: the picture slides twice as fast as the wall."""
    rng = np.random.default_rng(3)
    wall = cv2.resize(rng.integers(0, 255, (40, 120, 3), dtype=np.uint8), (600, H), interpolation=cv2.INTER_CUBIC)
    near = cv2.resize(rng.integers(0, 255, (12, 200, 3), dtype=np.uint8), (800, 36), interpolation=cv2.INTER_CUBIC)
    face = cv2.resize(rng.integers(0, 255, (16, 12, 3), dtype=np.uint8), (48, 64), interpolation=cv2.INTER_CUBIC)
    frames, masks = [], []
    for t in range(T):
        image = wall[:, 3 * t : 3 * t + W].copy()
        image[84:] = near[:, 9 * t : 9 * t + W]
        x, y = 120 - 6 * t + 12, 12 + (int(8 * np.sin(t / 2)) if moves else 0)
        mask = np.zeros((H, W), bool)
        x0 = max(x, 0)
        if x + 48 > 0:
            image[y : y + 64, x0 : x + 48] = face[:, x0 - x :]
            mask[y : y + 64, x0 : x + 48] = True
        frames.append(image)
        masks.append(mask)
    return np.stack(frames), np.stack(masks)


@pytest.mark.parametrize("moves", [False, True])
def test_parallax_is_not_motion(moves):
    """With a translating camera the epipolar geometry, not the homography of the wall, says what stands still."""
    frames, mask = parallax_world(moves)
    found = residual_motion(frames, mask, mask)
    assert found.points >= 20
    assert (found.residual > 2) == moves


def test_a_thing_without_texture_is_not_called_still():
    frames, mask = parallax_world(False)
    frames = frames.copy()
    frames[mask] = 128
    assert residual_motion(frames, mask, mask).points < 20


@pytest.mark.real
def test_a_real_jumper_moves_and_the_wall_behind_does_not(real_data):
    """DAVIS parkour: the camera pans and translates after a man who jumps; patches of the scene are carried along."""
    folder = real_data / "person_video" / "davis_parkour_mask"
    files = sorted(folder.glob("*.jpg"))
    frames = np.stack([cv2.cvtColor(cv2.imread(str(f)), cv2.COLOR_BGR2RGB) for f in files])
    person = np.stack([cv2.imread(str(f.with_suffix(".png")), cv2.IMREAD_GRAYSCALE) > 0 for f in files])
    still = TrackerOptions().still * frames.shape[2]
    assert residual_motion(frames, person, person).residual > 5 * still
    for corner in ((40, 100), (500, 250), (700, 60)):
        patch = carried(frames, person, corner)
        found = residual_motion(frames, patch, person | patch)
        assert found.points >= TrackerOptions().still_points
        assert found.residual < still


def carried(frames, person, corner):
    """bool [T,H,W]: a window of 120 x 160 pixels of the first frame, carried along by the background's homography."""
    grey = [cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in frames]
    (x, y), out, total = corner, np.zeros(person.shape, bool), np.eye(3)
    for t in range(len(frames)):
        if t:
            corners = cv2.goodFeaturesToTrack(grey[t - 1], 400, 0.01, 8, mask=(~person[t - 1]).astype(np.uint8))
            moved, found, _ = cv2.calcOpticalFlowPyrLK(grey[t - 1], grey[t], corners, None)
            found = found.ravel() > 0
            total = cv2.findHomography(corners[found], moved[found], cv2.RANSAC, 2)[0] @ total
        window = np.array([[[x, y], [x + 120, y], [x + 120, y + 160], [x, y + 160]]], np.float32)
        area = cv2.fillConvexPoly(
            np.zeros(person.shape[1:], np.uint8), cv2.perspectiveTransform(window, total)[0].astype(int), 1
        )
        out[t] = (area > 0) & ~person[t]
    return out
