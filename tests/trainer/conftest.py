"""Shards to train on."""

from pathlib import Path

import pytest
from trainer_worlds import write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Samples of three pairs of views."""
    return write_shards(tmp_path_factory.mktemp("shards"), 3, pairs=True)
