"""A full disk: the error says so, nothing half-written counts, and the same command goes on when there is room."""

import errno
import os
from pathlib import Path

import pytest
from protocol_child import CONFIG, LIMITS, drive
from test_kill import processes, state

from shards import store as store_module
from shards.run import Run
from shards.store import StorageError, is_transient, open_store

pytestmark = pytest.mark.fault


@pytest.mark.parametrize("room", [1, 2, 3, 5, 8, 12, 15])
def test_disk_full_at_any_write(tmp_path, room):
    """The `room`-th object still fits."""
    drive(str(tmp_path / "expected"))
    answers = processes.Queue()
    child = processes.Process(target=_drive_until_full, args=(str(tmp_path / "out"), room, answers))
    child.start()
    message = answers.get(timeout=60)
    child.join()
    assert "the disk is full: free space and start the same command again" in message
    drive(str(tmp_path / "out"))
    assert state(tmp_path / "out") == state(tmp_path / "expected")


def _drive_until_full(output: str, room: int, answers) -> None:
    left, real = [room], store_module._fsync

    def full(path: Path) -> None:
        left[0] -= path.is_file()
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path)

    store_module._fsync = full
    try:
        drive(output)
        answers.put("it all fitted")
    except StorageError as error:
        answers.put(str(error))


def test_full_is_not_transient():
    assert not is_transient(OSError(errno.ENOSPC, "no space left on device: connection"))
    assert is_transient(OSError(errno.ECONNRESET, "reset"))
    assert is_transient(TimeoutError())
    assert not is_transient(ValueError("bad"))


def test_an_orphan_tar_of_other_bytes_is_replaced(tmp_path):
    """A tar without a record is a leftover whatever it holds: the run that owns the lease writes over it."""
    drive(str(tmp_path / "expected"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metaworld-000001.tar").write_bytes(b"left by a driver that died")
    drive(str(tmp_path / "out"))
    assert state(tmp_path / "out") == state(tmp_path / "expected")


def test_a_record_that_another_driver_wrote_in_between_is_followed(tmp_path, monkeypatch):
    """A zombie commits between our tar and our record, with another view of what was quarantined: its record stands."""
    from shard_samples import tiny, unit

    url = str(tmp_path)
    with Run.open(url, config=CONFIG, limits=LIMITS) as run:
        run.extend(unit(i) for i in range(6))
        for i in range(6):
            run.spool.put(unit(i), tiny(unit(i).key, i))
        zombie = Run(open_store(url), run.lease, "metaworld", LIMITS)  # sees no quarantine
        run.spool.quarantine(unit(1), stage="late", reason="late")
        run._assembler._failed.add(unit(1).ident)
        original = run._assembler._put_tar

        def put_tar_then_zombie(shard, path):
            original(shard, path)
            monkeypatch.setattr(run._assembler, "_put_tar", original)
            with monkeypatch.context() as patch:
                patch.setattr(zombie._assembler, "_put_tar", lambda *a: None)  # it wrote its tar long ago
                patch.setattr(store_module.Store, "delete", lambda *a: None)  # it dies before cleaning up
                zombie.commit_ready()

        monkeypatch.setattr(run._assembler, "_put_tar", put_tar_then_zombie)
        run.commit_ready()
        run.finish()
    from shards.verify import verify

    report = verify(open_store(url), schema=False)
    assert report.ok, report.problems
    assert report.samples == 6
