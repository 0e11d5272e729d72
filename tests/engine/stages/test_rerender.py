"""A sample holds all that its conditions were drawn from: a reader can draw them again, or along other paths."""

from types import SimpleNamespace

import numpy as np
import pytest

from engine.geometry.cloud import point_size
from engine.mwsu import unroll_clip
from engine.perception.oracle import OracleOptions
from engine.stages.options import StageOptions
from engine.stages.pack import pack
from engine.stages.render import RenderOptions, render_condition
from engine.synthetic import make_world, oracle_from_view, render
from engine.types import Cloud
from shards import codec
from shards.check import check_sample


@pytest.mark.parametrize("background", ["anchor", "holistic"])
def test_the_stored_state_draws_the_stored_conditions(background: str, sample):
    state, stored = sample
    cloud, camera = stored[f"background_{background}.npz"], stored["camera.npz"]
    told = dict(stored["meta.json"]["render"])
    grain = told.pop("grain")[background]
    size = point_size(cloud["xyz"], cloud["frame"], camera["K"], camera["c2w"], grain)
    drawn = render_condition(
        state.clip.size,
        SimpleNamespace(**camera),
        SimpleNamespace(**stored["subjects.npz"]),
        Cloud(cloud["xyz"], cloud["rgb"], cloud["frame"], size, grain),
        RenderOptions(**told),
    )
    first = getattr(state, f"{background}_rendering")
    for part in ("rgb", "depth", "ids"):
        np.testing.assert_array_equal(getattr(drawn, part), getattr(first, part))
    np.testing.assert_array_equal(drawn.ids, stored[f"condition_{background}_ids.npz"]["ids"])


@pytest.fixture(scope="module")
def sample():
    """(world state, its sample read back) of a walk whose holistic cloud had to be coarsened."""
    view = render(make_world(kind="room", camera="walk", agents=2, seed=1, frames=9, height=120, width=208))
    clip, models = oracle_from_view(view, OracleOptions())
    options = StageOptions()
    options.background.max_points, options.render.cover, options.render.hole = 15_000, 1.2, "white"
    state = unroll_clip(clip, models, options)
    members = pack(state, config="test")
    assert check_sample(members, clip.key) == []
    assert state.holistic.grain > 1.2
    return state, {n: codec.decode(n, m) for n, m in members.items() if n.endswith((".npz", ".json"))}
