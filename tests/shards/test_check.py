"""check_sample: a right sample has no violation; each rule, broken alone, is named."""

import copy

import numpy as np
import pytest
from shard_samples import members, values

from shards import codec
from shards.check import check_sample

KEY = "0123456789ab-0000-left"


@pytest.mark.parametrize("N", [0, 1, 3])
def test_a_right_sample_passes(N):
    assert check_sample(members(KEY, N=N, H=18, W=26), KEY) == []


def test_an_inference_request_passes():
    request = members(KEY)
    for name in ("target.mp4", "masks.npz", "depth.npz", "caption.txt"):
        del request[name]
    assert check_sample(request, KEY) == []


def put(member, array, index, value):
    def change(sample):
        sample[member][array] = sample[member][array].copy()
        sample[member][array][index] = value

    return change


def meta(name, value):
    return lambda sample: sample["meta.json"].update({name: value})


BREAKS = {
    "camera.npz: missing": lambda s: s.pop("camera.npz"),
    "identity_00.png: missing": lambda s: s.pop("identity_00.png"),
    "identity_02.png: there are only 2": lambda s: s.update({"identity_02.png": s["identity_00.png"]}),
    "c2w of frame 0": put("camera.npz", "c2w", (0, 0, 3), 0.5),
    "no proper rotations": put("camera.npz", "c2w", (3, 0, 0), -1.0),
    "last row of c2w": put("camera.npz", "c2w", (2, 3, 3), 2.0),
    "K is no intrinsic matrix": put("camera.npz", "K", (1, 0, 0), -20.0),
    "up has length": put("camera.npz", "up", 1, -2.0),
    "inliers lie outside": put("camera.npz", "inliers", 1, 1.5),
    "not finite: reprojection": put("camera.npz", "reprojection", 1, np.nan),
    "kind is 1": lambda s: s["camera.npz"].update(kind=np.uint8(1)),
    "cov is not symmetric": put("subjects.npz", "cov", (0, 0, 0, 1), 0.05),
    "not positive semi-definite": put("subjects.npz", "cov", (0, 0, 2, 2), -0.1),
    "mean or cov is not finite": put("subjects.npz", "mean", (1, 2, 0), np.inf),
    "heading must be NaN exactly": put("subjects.npz", "heading", (0, 0), np.nan),
    "heading_source is no index": put("subjects.npz", "heading_source", (0, 0), 9),
    "points is negative": put("subjects.npz", "points", (0, 0), -1),
    "labels reach 7": put("masks.npz", "labels", (0, 0, 0), 7),
    "dynamic does not contain": put("masks.npz", "dynamic", slice(None), False),
    "ids holds 9": put("condition_anchor_ids.npz", "ids", (0, 0, 0), 9),
    "frame lies outside": put("background_anchor.npz", "frame", 3, 5),
    "xyz is not finite": put("background_holistic.npz", "xyz", (3, 1), np.nan),
    "array inliers is missing": lambda s: s["camera.npz"].pop("inliers"),
    "unknown array extra": lambda s: s["camera.npz"].update(extra=np.zeros(3)),
    "expected float32 [5, 3, 3]": lambda s: s["camera.npz"].update(K=s["camera.npz"]["K"].astype(np.float64)),
    "expected uint8 [5, 5, 7]": lambda s: s["depth.npz"].update(confidence=np.zeros((5, 4, 6), np.uint8)),
    "rgb is uint8 [9, 3], expected uint8 [50, 3]": lambda s: s["background_anchor.npz"].update(
        rgb=np.zeros((9, 3), np.uint8)
    ),
    "range is": put("depth.npz", "range", 0, 0.5),
    "has 4 frames, expected T = 5": lambda s: s.update({"target.mp4": s["target.mp4"][:4]}),
    "is 16x24, expected 18x26": lambda s: s.update({"target.mp4": s["target.mp4"][:, :16, :24]}),
    "schema_version is 2": meta("schema_version", 2),
    "is not of the form": meta("key", "a.b"),
    "filed under": meta("key", "0123456789ab-0001"),
    "camera_kind 'drone' is none of": meta("camera_kind", "drone"),
    "verdict 'fine' is none of": meta("verdict", "fine"),
    "expected 1 + 4k": meta("frames", 6),
    "fps is 0": meta("fps", 0),
    "field models is missing": lambda s: s["meta.json"].pop("models"),
    "unknown field extra": meta("extra", 1),
    "source.crop is missing": lambda s: s["meta.json"]["source"].pop("crop"),
    "source.frames has 1": lambda s: s["meta.json"]["source"].update(frames=[0]),
    "depth_range of depth.npz is None": lambda s: s["meta.json"].update(depth_range={}),
    "quality column camera_jerk is missing": lambda s: s["meta.json"]["quality"].pop("camera_jerk"),
    "unknown quality column vibe": lambda s: s["meta.json"]["quality"].update(vibe=1),
    "subjects[1].label is 5": lambda s: s["meta.json"]["subjects"][1].update(label=5),
    "pair is {'id': 'a'}": meta("pair", {"id": "a"}),
    "unknown field pair.when": meta("pair", {"id": "a", "view": "b", "when": 1}),
    "pair.world is [1, 2]": meta("pair", {"id": "a", "view": "b", "world": [1, 2]}),
    "pair.world is no rigid motion": meta("pair", {"id": "a", "view": "b", "world": np.diag([-1.0, 1, 1, 1]).tolist()}),
    "is empty": lambda s: s.update({"caption.txt": " "}),
}


@pytest.fixture(scope="module")
def right():
    return values(KEY, N=2, H=18, W=26), members(KEY, N=2, H=18, W=26)


@pytest.mark.parametrize("message", BREAKS)
def test_each_broken_rule_is_named(right, message):
    sample, data = copy.deepcopy(right[0]), dict(right[1])
    BREAKS[message](sample)
    for name in data.keys() - sample.keys():
        del data[name]
    for name, value in sample.items():
        if name not in data or not _equal(value, right[0][name]):
            data[name] = codec.encode(name, value, fps=16)
    violations = check_sample(data, KEY)
    assert any(message in violation for violation in violations), violations


def test_damage_and_strangers_are_named(right):
    data = right[1] | {"notes.doc": b"hello"}
    for name in ("target.mp4", "masks.npz", "identity_00.png", "condition_anchor_depth.mkv"):
        data[name] = data[name][: len(data[name]) // 3]
    violations = check_sample(data, KEY)
    for name in ("notes.doc", "target.mp4", "masks.npz", "identity_00.png", "condition_anchor_depth.mkv"):
        assert any(violation.startswith(name) for violation in violations), (name, violations)


@pytest.mark.parametrize(("data", "kind"), [(b"null", "NoneType"), (b"[]", "list"), (b"3", "int")])
def test_a_meta_json_that_is_no_object_is_named(data, kind):
    assert f"meta.json: expected an object, found {kind}" in check_sample(members(KEY) | {"meta.json": data}, KEY)


def _equal(a, b) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray | np.generic):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return a == b
