"""Equal seeds give equal bytes; the writer finishes what is incomplete and leaves the rest alone."""

import numpy as np
import pytest

from engine.synthetic import make_world, render
from engine.synthetic.dataset import PAIRS, SAMPLES, Recording, write_recordings
from engine.synthetic.texture import TEXTURES, TILE, Atlas

SMALL = {"frames": 5, "height": 48, "width": 84}
ONE = (Recording("tiny", {"kind": "room", "camera": "orbit", "seed": 4}, "Two people.", 0, ("tiny", "a")),)


def test_equal_seeds_give_equal_views_and_others_do_not():
    a, b, c = (render(make_world("street", "walk", seed=s, **SMALL)) for s in (7, 7, 8))
    for name in ("frames", "depth", "labels", "K", "c2w", "centroid", "root", "heading"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.frames != c.frames).mean() > 0.5


def test_writing_twice_gives_equal_bytes_and_skips_what_is_complete(tmp_path):
    def files(folder):
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    quiet = {"log": lambda line: None, **SMALL}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert write_recordings(tmp_path / name, ONE, **quiet) == 1
    first = files(tmp_path / "a")
    assert set(first) == {"tiny.mp4", "tiny.txt"} | {f"tiny/{n}" for n in ("pair.json", "truth.npz")} | {
        f"tiny/{n}" for n in ("depth.npz", "masks.npz", "camera.npz")
    }
    assert first == files(tmp_path / "b")
    assert write_recordings(tmp_path / "a", ONE, **quiet) == 0
    (tmp_path / "a" / "tiny" / "camera.npz").unlink()
    assert write_recordings(tmp_path / "a", ONE, **quiet) == 1
    assert files(tmp_path / "a") == first


def test_the_default_recordings_are_what_the_project_promises():
    assert [r.world["camera"] for r in SAMPLES] == ["walk", "orbit"]
    assert len({r.pair[0] for r in PAIRS}) == 1
    assert {r.pair[1] for r in PAIRS} == {"a", "b"}
    assert PAIRS[0].world == PAIRS[1].world
    assert len({r.name for r in SAMPLES + PAIRS}) == 4


@pytest.mark.parametrize("name", sorted(TEXTURES))
def test_textures_have_detail_and_repeat_without_a_seam(name):
    tile = np.clip(TEXTURES[name](np.random.default_rng(0)), 0, 1)
    assert tile.shape == (TILE, TILE, 3)
    assert tile.std() > 0.01
    if name in ("grass", "asphalt", "plaster", "fabric", "bark", "mottle"):
        # The step across the border is a step like any other.
        inner = np.abs(np.diff(tile, axis=1)).mean()
        assert np.abs(tile[:, 0] - tile[:, -1]).mean() < 2.5 * inner


def test_the_atlas_reads_what_was_painted():
    atlas = Atlas(["brick", "grass"], seed=0)
    rng = np.random.default_rng(1)
    uv = rng.uniform(-3, 3, (500, 2))
    texture = rng.integers(0, 2, 500)
    fine = atlas.read(texture, uv, np.full(500, 1e-6))
    for name, i in atlas.index.items():
        tile = np.clip(TEXTURES[name](np.random.default_rng([0, *name.encode()])), 0, 1) * 255
        x = uv[texture == i] % 1 * TILE - 0.5
        low = np.floor(x).astype(int)
        f = x - low
        want = 0
        for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
            weight = (f[:, 0] if dx else 1 - f[:, 0]) * (f[:, 1] if dy else 1 - f[:, 1])
            want = want + weight[:, None] * tile[(low[:, 1] + dy) % TILE, (low[:, 0] + dx) % TILE]
        assert np.abs(fine[texture == i] - want).max() < 4  # 8-bit texels, remap's 1/32 pixel steps
    coarse = atlas.read(texture, uv, np.full(500, 10.0))
    assert coarse[texture == 0].std(0).max() < 0.25 * fine[texture == 0].std(0).max()
