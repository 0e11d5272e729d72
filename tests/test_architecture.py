"""The import rules that keep the halves apart, read from the source."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("engine", "shards", "trainer")

# Who may import what is expensive or belongs to one adapter.
OWNERS = {
    "sam2": "engine/perception/",
    "moge": "engine/perception/",
    "ai_edge_litert": "engine/perception/embedded/",
    "transformers": ("engine/perception/", "trainer/"),
    "diffusers": "trainer/",
    "deepspeed": "trainer/",
    "ray": "engine/run/",
    "decord": "engine/ingest/",
    "scenedetect": "engine/ingest/",
}


def imports(path: Path) -> set[str]:
    """Top-level names of everything a file imports, wherever in the file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


SOURCES = {p.relative_to(ROOT).as_posix(): imports(p) for package in PACKAGES for p in (ROOT / package).rglob("*.py")}


@pytest.mark.parametrize(
    ("package", "forbidden"), [("engine", {"trainer"}), ("trainer", {"engine"}), ("shards", {"engine", "trainer"})]
)
def test_the_halves_meet_only_in_shards(package, forbidden):
    broken = {f: names & forbidden for f, names in SOURCES.items() if f.startswith(package) and names & forbidden}
    assert not broken


@pytest.mark.parametrize("library", OWNERS)
def test_a_library_is_imported_only_by_its_owner(library):
    strangers = [f for f, names in SOURCES.items() if library in names and not f.startswith(OWNERS[library])]
    assert not strangers


def test_parquet_is_read_in_one_place():
    """Elsewhere it would be read through a file object, which now and then aborts the interpreter at its end."""
    readers = {f for f in SOURCES if "pyarrow.parquet" in (ROOT / f).read_text()}
    assert readers == {"shards/parquet.py"}


def test_no_other_top_level_package():
    found = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert found == set(PACKAGES)


def test_no_file_outgrows_a_reader():
    long = {f: n for f in SOURCES if (n := len((ROOT / f).read_text().splitlines())) > 400}
    assert not long
