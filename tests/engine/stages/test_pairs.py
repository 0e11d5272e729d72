"""Two agents' views of one world: `pair.world` in the samples' meta.json puts both into one frame of reference."""

from dataclasses import replace

import numpy as np
import pytest

from engine.mwsu import unroll_clip
from engine.perception.oracle import exact_options
from engine.stages.options import StageOptions
from engine.stages.pack import pack
from engine.synthetic import make_world, oracle_from_view, render
from engine.synthetic.dataset import PAIRS
from shards import codec
from shards.check import check_sample

SIZE = {"frames": 9, "height": 120, "width": 208}


@pytest.fixture(scope="module")
def views():
    world = make_world(**{**PAIRS[0].world, **SIZE})
    return {recording.pair[1]: render(world, recording.agent) for recording in PAIRS}


def sample_of(view, name: str, **errors) -> dict:
    """The view's sample as it is stored and read back."""
    clip, models = oracle_from_view(view, exact_options(**errors))
    clip = replace(clip, pair=("meeting", name))
    members = pack(unroll_clip(clip, models, StageOptions()), config="test")
    assert check_sample(members, clip.key) == []
    return {n: codec.decode(n, members[n]) for n in ("meta.json", "camera.npz", "subjects.npz")}


def in_shared_world(sample: dict) -> tuple[np.ndarray, np.ndarray]:
    """(camera-to-world [T,4,4], subjects' centres [N,T,3]) in the world that the views of a pair share, metres."""
    world = np.array(sample["meta.json"]["pair"]["world"])
    return world @ sample["camera.npz"]["c2w"], sample["subjects.npz"]["mean"] @ world[:3, :3].T + world[:3, 3]


@pytest.fixture(scope="module")
def samples(views):
    return {name: sample_of(view, name) for name, view in views.items()}


def test_both_camera_paths_are_those_of_one_world(views, samples):
    for name, view in views.items():
        path, _ = in_shared_world(samples[name])
        np.testing.assert_allclose(path, view.c2w, atol=1e-4)  # float32 poses, metres
    a, b = (in_shared_world(samples[name])[0] for name in "ab")
    expected = np.linalg.inv(views["a"].c2w) @ views["b"].c2w  # where each stands to the other, all the time
    np.testing.assert_allclose(np.linalg.inv(a) @ b, expected, atol=1e-4)


def test_each_sees_the_other_where_the_other_is(views, samples):
    """Its centroid as the renderer knows it, and the body under the other's camera, as the other's sample says."""
    for name, other in (("a", "b"), ("b", "a")):
        _, subjects = in_shared_world(samples[name])
        seen = samples[name]["subjects.npz"]["observed"]
        truth = views[name].centroid[np.isfinite(views[name].centroid).any((1, 2))]  # of the figures that are seen
        apart = np.linalg.norm(subjects[:, None] - truth[None], axis=-1)  # [n, N, T]
        for n, frames in enumerate(seen):
            assert np.nanmedian(apart[n][:, frames], axis=-1).min() < 0.1, (name, n)
        carried, _ = in_shared_world(samples[other])
        aside = np.linalg.norm((subjects - carried[:, :3, 3])[..., [0, 2]], axis=-1)  # metres, seen from above
        nearest = min(np.median(aside[n][frames]) for n, frames in enumerate(seen))  # others walk along
        assert nearest < 0.4, (name, nearest)  # half a body's depth and an arm: a camera is held before the chest


def test_the_frame_is_told_even_where_the_poses_are_hidden(views, samples):
    hidden = sample_of(views["a"], "a", hide_poses=True)
    assert hidden["meta.json"]["pair"] == samples["a"]["meta.json"]["pair"]


def test_a_source_without_a_world_says_so(views):
    clip, models = oracle_from_view(views["a"], exact_options())
    state = unroll_clip(replace(clip, pair=("meeting", "a")), models, StageOptions())
    unknown = replace(state.scene.geometry, world=None)
    members = pack(replace(state, scene=replace(state.scene, geometry=unknown)), config="test")
    assert codec.decode("meta.json", members["meta.json"])["pair"] == {"id": "meeting", "view": "a", "world": None}
    assert check_sample(members, clip.key) == []
