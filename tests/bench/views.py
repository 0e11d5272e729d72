"""Rendered views of synthetic worlds, kept on disk between runs: rendering one takes about a minute."""

import hashlib
from pathlib import Path

import numpy as np

from engine.synthetic.render import View, render
from engine.synthetic.world import make_world

ROOT = Path(__file__).resolve().parents[2]
ARRAYS = ("frames", "depth", "labels", "K", "c2w", "centroid", "root", "heading")


def fingerprint(*sources: str) -> str:
    """12 hex digits of the given files and of the sources under the given folders: a result is kept only while they
    stay the same."""
    digest = hashlib.sha256()
    for source in sources:
        given = ROOT / source
        for path in sorted(given.rglob("*.py")) if given.is_dir() else [given]:
            digest.update(path.relative_to(ROOT).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def load_view(cache: Path, **world) -> View:
    """The view of agent 0 of `make_world(**world)`, rendered once for each version of engine/synthetic."""
    made = make_world(**world)
    name = "-".join(f"{v}" for _, v in sorted(world.items()))
    path = cache / f"view-{name}-{fingerprint('engine/synthetic')}.npz"
    if not path.exists():
        view = render(made)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, figures=np.array(view.figures), **{name: getattr(view, name) for name in ARRAYS})
        part.replace(path)
        for stale in set(cache.glob(f"view-{name}-*.npz")) - {path}:  # a quarter of a gigabyte each
            stale.unlink(missing_ok=True)
        return view
    with np.load(path) as data:
        arrays = {name: data[name] for name in ARRAYS}
        return View(world=made, agent=0, figures=tuple(int(i) for i in data["figures"]), **arrays)
