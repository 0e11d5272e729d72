"""kill -9 of the driver at every request that writes to S3, also in the middle of a multipart upload."""

import os
import random
import signal
from pathlib import Path

import pytest
from test_kill import processes
from test_s3 import bucket, drive, hashes, s3  # noqa: F401 (fixtures)

from shards.run import status
from shards.store import open_store
from shards.verify import verify

pytestmark = [pytest.mark.fault, pytest.mark.slow]
WRITES = ("PUT", "POST", "DELETE")


class Killer:
    """A plan of faults: at the step-th write, kill the client before or after the server does it."""

    def __init__(self, step: int, after: bool) -> None:
        self.left, self.after, self.pid = step, after, 0

    def __call__(self, method: str, path: str, query: str) -> str | None:
        if method not in WRITES or "uploads" in query:
            return None
        self.left -= 1
        if self.left != -1:
            return None
        os.kill(self.pid, signal.SIGKILL)
        return "commit_then_500" if self.after else "500"


def run_and_die(s3, killer: Killer, target, *args) -> int:  # noqa: F811
    """Exit code of the killed child."""
    s3.plan = lambda *request: None
    child = processes.Process(target=_here, args=(dict(os.environ), target, *args))
    child.start()
    killer.pid = child.pid
    s3.plan = killer
    child.join(timeout=120)
    s3.plan = lambda *request: None
    return child.exitcode


def _here(environment: dict[str, str], target, *args) -> None:
    """Run in this environment: the fork server may be older than the store of this module."""
    os.environ.update(environment)
    target(*args)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_every_write(s3, bucket, tmp_path, after):  # noqa: F811
    drive(str(tmp_path), 3)
    expected, step = hashes(str(tmp_path)), 0
    while True:
        url = f"{bucket}/{step}"
        code = run_and_die(s3, Killer(step, after), drive, url, 3)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        drive(url, 3)  # at once: the dead process's lease does not hold it up
        assert hashes(url) == expected, f"killed {'after' if after else 'before'} write {step}"
        assert status(url).committed == 3
        assert verify(open_store(url), schema=False).ok
        step += 1
    assert step > 15  # lease, run, plan, work, tars, records, clean-up, index


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_killed_in_the_middle_of_a_multipart_upload(s3, bucket, tmp_path, step):  # noqa: F811
    """Parts 1 to 3, then the completion: no half object is ever seen, and the next try puts the whole one."""
    path = tmp_path / "large"
    path.write_bytes(random.Random(1).randbytes(11 << 20))
    code = run_and_die(s3, Killer(step, False), upload, f"{bucket}/run", str(path))
    assert code == -signal.SIGKILL
    store = open_store(f"{bucket}/run")
    assert store.size("large.tar") is None
    assert store.put_new("large.tar", path)
    assert store.holds("large.tar", path)


def upload(url: str, path: str) -> None:
    import s3fs.core

    s3fs.core.calculate_chunksize = lambda size, chunksize=None: 5 << 20
    open_store(url).put_new("large.tar", Path(path))
