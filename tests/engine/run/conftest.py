"""Videos and what an undisturbed run makes of them."""

from pathlib import Path

import pytest
from unroll_inputs import unroll, write_input


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A folder of five small videos with their perception."""
    return write_input(tmp_path_factory.mktemp("videos"), 5)


@pytest.fixture(scope="module")
def straight(source, tmp_path_factory) -> Path:
    """What the local runner makes of the source, undisturbed."""
    out = tmp_path_factory.mktemp("straight") / "out"
    done = unroll(source, out)
    assert done.returncode == 0, done.stderr
    return out
