"""kill -9 at any moment, and started again: the same bytes as a run that nobody disturbed."""

import time

import pytest
from unroll_inputs import shards_of, start, unroll

from shards.run import status

pytestmark = [pytest.mark.fault, pytest.mark.slow]


@pytest.mark.parametrize("sign", ["_plan/g0000.parquet", "_work/*.tar", "_commits/000000.json", "_commits/000001.json"])
def test_killed_when(sign, source, straight, tmp_path):
    """Kill the driver as soon as `sign` is there."""
    out = tmp_path / "out"
    process = start(source, out)
    while not list(out.glob(sign)) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = unroll(source, out)
    assert done.returncode == 0, done.stderr
    assert shards_of(out) == shards_of(straight)
    now = status(str(out))
    assert (now.committed, now.todo, now.spooled) == (5, 0, 0)
