"""The commit protocol without faults: order, restarts, cuts, generations, retries, and what the world can read."""

import hashlib
import random
from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_samples import members, tiny, unit

from shards.lease import LeaseHeld, LeaseLost
from shards.run import Run, RunMismatch, ShardLimits, failures, status
from shards.writer import tar_sample

CONFIG = {"clip": {"frames": 5}, "weights": ["a", "b"]}
BAD = {3, 8}  # units that are quarantined
LIMITS = ShardLimits(samples=4, bytes=6000)


def tar_hashes(output: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.glob("*.tar"))}


def commit_bytes(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((output / "_commits").glob("*"))}


def decide(run: Run, todo) -> None:
    number = int(todo.key[:12], 16)
    if number in BAD and todo.attempt == 0:
        run.spool.quarantine(todo, stage="decode", reason="zero_frames", traceback="Traceback ...", attempts=2)
    else:
        run.spool.put(todo, tiny(todo.key, number))


def whole_run(output: Path, count: int = 14, limits: ShardLimits = LIMITS) -> dict[str, str]:
    with Run.open(str(output), config=CONFIG, limits=limits) as run:
        run.extend(unit(i) for i in range(count))
        for todo in run.todo():
            decide(run, todo)
            run.commit_ready()
        run.finish()
    return tar_hashes(output)


def test_committed_is_planned_minus_quarantined(tmp_path):
    whole_run(tmp_path)
    found = status(str(tmp_path))
    assert (found.planned, found.committed, found.quarantined, found.todo, found.spooled) == (14, 12, 2, 0, 0)
    assert not list((tmp_path / "_work").iterdir())
    assert {record["reason"] for record in failures(str(tmp_path))} == {"zero_frames"}
    sizes = [path.stat().st_size for path in tmp_path.glob("*.tar")]
    assert len(sizes) > 3
    assert max(sizes) <= LIMITS.bytes


@pytest.fixture(scope="module")
def expected_run(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    output = tmp_path_factory.mktemp("expected")
    return output, whole_run(output)


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 10**6), stops=st.lists(st.integers(0, 13), max_size=3))
def test_bytes_depend_on_neither_order_nor_restarts(tmp_path_factory, expected_run, seed, stops):
    expected_at, expected = expected_run
    output, shuffle = tmp_path_factory.mktemp("output"), random.Random(seed).shuffle
    for stop in [*stops, None]:
        with Run.open(str(output), config=CONFIG, limits=LIMITS) as run:
            run.extend(unit(i) for i in range(14))
            todo = list(run.todo())
            shuffle(todo)
            for one in todo[:stop]:
                decide(run, one)
                if seed % 2:
                    run.commit_ready()
            if stop is None:
                run.finish()
    assert tar_hashes(output) == expected
    assert commit_bytes(output) == commit_bytes(expected_at)


def test_a_second_run_does_no_work(tmp_path):
    before = whole_run(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    with Run.open(str(tmp_path), config=CONFIG, limits=LIMITS) as run:
        assert run.extend(unit(i) for i in range(14)) == 0
        assert list(run.todo()) == []
        run.finish()
    assert tar_hashes(tmp_path) == before
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")} == times


def test_new_videos_make_a_generation_and_leave_old_shards_alone(tmp_path):
    before = whole_run(tmp_path, 5)
    after = whole_run(tmp_path, 9)
    assert before.items() < after.items()
    assert sorted(p.name for p in (tmp_path / "_plan").iterdir()) == ["g0000.parquet", "g0001.parquet"]
    assert status(str(tmp_path)).committed == 9 - len(BAD)


def test_retry_plans_failed_units_again(tmp_path):
    before = whole_run(tmp_path)
    with Run.open(str(tmp_path), config=CONFIG, limits=LIMITS) as run:
        assert run.retry_failed({"no such reason"}) == 0
        assert run.retry_failed() == 2
        assert run.retry_failed() == 0  # already planned again
        todo = list(run.todo())
        assert [(int(t.key[:12], 16), t.attempt) for t in todo] == [(3, 1), (8, 1)]
        for one in todo:
            decide(run, one)
        found = run.finish()
    assert (found.planned, found.committed, found.quarantined) == (14, 14, 0)
    assert before.items() < tar_hashes(tmp_path).items()
    assert list(failures(str(tmp_path))) == []
    assert len(list(failures(str(tmp_path), retried=True))) == 2


def test_a_unit_that_fails_again_stays_quarantined_and_can_be_retried_again(tmp_path):
    whole_run(tmp_path)
    for attempt in (1, 2):
        with Run.open(str(tmp_path), config=CONFIG, limits=LIMITS) as run:
            assert run.retry_failed() == 2
            for one in run.todo():
                assert one.attempt == attempt
                run.spool.quarantine(one, stage="camera", reason="again")
            assert run.finish().quarantined == 2


def test_the_first_answer_of_two_workers_wins(tmp_path):
    with Run.open(str(tmp_path), config=CONFIG) as run:
        run.extend([unit(1)])
        assert run.spool.put(unit(1), tiny(unit(1).key, 1))
        assert run.spool.put(unit(1), tiny(unit(1).key, 1))  # equal bytes: the same answer
        assert not run.spool.put(unit(1), tiny(unit(1).key, 2))
        run.finish()
    assert tar_sample(unit(1).key, tiny(unit(1).key, 1)) == next(tmp_path.glob("*.tar")).read_bytes()


def test_the_same_content_under_two_names_is_planned_once(tmp_path):
    with Run.open(str(tmp_path), config=CONFIG) as run:
        copy = unit(1).__class__(**(vars(unit(1)) | {"unit": "f" * 64, "uri": "in/copy.mp4"}))
        assert run.extend([unit(1), copy]) == 1


def test_another_configuration_is_refused_with_the_difference(tmp_path):
    whole_run(tmp_path)
    with pytest.raises(RunMismatch, match=r"config\.clip\.frames: 5 in the output, 9 now"):
        Run.open(str(tmp_path), config={"clip": {"frames": 9}, "weights": ["a", "b"]}, limits=LIMITS)
    with pytest.raises(RunMismatch, match=r"limits\.samples: 4 in the output, 5 now"):
        Run.open(str(tmp_path), config=CONFIG, limits=ShardLimits(samples=5, bytes=LIMITS.bytes))


def test_one_driver_at_a_time(tmp_path):
    with Run.open(str(tmp_path), config=CONFIG) as first:
        with pytest.raises(LeaseHeld, match="another driver is at work"):
            Run.open(str(tmp_path), config=CONFIG)
        first.close()
        with Run.open(str(tmp_path), config=CONFIG), pytest.raises(LeaseLost):
            first.extend([unit(1)])


def test_webdataset_reads_the_tars(tmp_path):
    with Run.open(str(tmp_path), config=CONFIG, limits=ShardLimits(samples=2)) as run:
        run.extend(unit(i) for i in range(3))
        for todo in run.todo():
            run.spool.put(todo, members(todo.key, int(todo.key[:12], 16)))
        run.finish()
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [unit(i).key for i in range(3)]
    for i, sample in enumerate(samples):
        assert sample["meta.json"]["key"] == unit(i).key
        assert sample["camera.npz"]["c2w"].shape == (5, 4, 4)
        assert set(sample) - {"__key__", "__url__", "__local_path__"} == set(members(unit(i).key, i))


def test_an_undecided_unit_holds_back_only_what_comes_after(tmp_path):
    with Run.open(str(tmp_path), config=CONFIG, limits=ShardLimits(samples=2)) as run:
        run.extend(unit(i) for i in range(6))
        for todo in run.todo():
            if todo.key != unit(2).key:
                run.spool.put(todo, tiny(todo.key))
        assert run.commit_ready() == ["metaworld-000000.tar"]
        assert run.finish().todo == 1
        run.spool.put(unit(2), tiny(unit(2).key))
        assert run.commit_ready() == ["metaworld-000001.tar", "metaworld-000002.tar"]
