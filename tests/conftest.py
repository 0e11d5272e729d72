"""Shared by all tests: where the real clips are, and a small thread budget so that tests can run side by side."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real clips; the test skips, saying so, where there is none."""
    folder = Path(os.environ.get("METAWORLD_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real clips at {folder} (set METAWORLD_DATA)")
    return folder
