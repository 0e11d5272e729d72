"""The store and the protocol on S3 while the server fails: every fault is survived and nothing is written twice."""

import random
import uuid

import pytest
from faulty_s3 import FAULTS, FaultyS3, point_at, serve
from shard_samples import tiny, unit

from shards import store as store_module
from shards.run import Run, ShardLimits, status
from shards.store import S3Store, StorageError, open_store
from shards.verify import verify

pytestmark = pytest.mark.fault


@pytest.fixture(scope="module")
def s3():
    app = FaultyS3()
    with serve(app) as url:
        patch = pytest.MonkeyPatch()
        point_at(url, patch)
        patch.setattr(store_module, "BACKOFF_S", 0.01)
        yield app
        patch.undo()


@pytest.fixture
def bucket(s3) -> str:
    s3.plan = lambda *request: None
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    url = f"s3://{name}"
    open_store(f"{url}/x").fs.mkdir(name)
    s3.log.clear()
    return url


def once(fault: str, method: str, part: str = ""):
    """A plan that injects the fault into the first matching request only."""
    left = [fault]
    return lambda m, path, query: left.pop() if left and m == method and part in f"{path}?{query}" else None


def test_put_new_is_put_if_absent(bucket):
    store = open_store(f"{bucket}/run")
    assert isinstance(store, S3Store)
    assert store.put_new("a/b.json", b"one")
    assert store.put_new("a/b.json", b"one")
    assert not store.put_new("a/b.json", b"two")
    assert store.read("a/b.json") == b"one"
    assert store.read_range("a/b.json", 1, 3) == b"ne"
    assert (store.size("a/b.json"), store.size("a/c.json")) == (3, None)
    assert [entry.path for entry in store.list("a")] == ["a/b.json"]
    store.delete("a/b.json")
    store.delete("a/b.json")
    assert list(store.list("a")) == []


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "truncate"])
def test_every_fault_of_a_put_is_survived(s3, bucket, fault):
    store = open_store(f"{bucket}/run")
    s3.plan = once(fault, "PUT", "object")
    assert store.put_new("object", b"payload")  # True also when the failed PUT had landed: read back and compared
    assert store.read("object") == b"payload"
    assert any(entry[2] == fault for entry in s3.log)


def test_a_landed_put_of_another_writer_is_not_taken_for_ours(s3, bucket):
    store = open_store(f"{bucket}/run")
    store.put_new("object", b"theirs")
    s3.plan = once("500", "PUT", "object")
    assert not store.put_new("object", b"mine")


@pytest.mark.parametrize("fault", ["500", "503", "slow", "reset", "truncate"])
def test_every_fault_of_a_get_is_survived(s3, bucket, fault):
    store = open_store(f"{bucket}/run")
    payload = random.Random(0).randbytes(300_000)
    store.put_new("object", payload)
    for read, expected in (
        (lambda: store.read("object"), payload),
        (lambda: store.read_range("object", 1000, 200_000), payload[1000:200_000]),
    ):
        s3.plan = once(fault, "GET", "object")
        assert read() == expected


@pytest.mark.parametrize("fault", [None, "500", "reset", "commit_then_500"])
@pytest.mark.parametrize("request_part", ["partNumber=2", "uploadId"])
def test_multipart(s3, bucket, tmp_path, monkeypatch, fault, request_part):
    """A large file goes up in parts; a fault in a part or in the completion starts it again; no part is left behind."""
    store = open_store(f"{bucket}/run")
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, chunksize=None: 5 << 20)
    path = tmp_path / "large"
    path.write_bytes(random.Random(1).randbytes(11 << 20))
    s3.plan = once(fault, "PUT" if "part" in request_part else "POST", request_part) if fault else s3.plan
    assert store.put_new("large.tar", path)
    assert store.holds("large.tar", path)
    assert any("partNumber=2" in entry[1] for entry in s3.log)
    path.write_bytes(b"other")
    assert not store.put_new("large.tar", path)
    uploads = store.fs.call_s3("list_multipart_uploads", Bucket=bucket[5:])
    assert not uploads.get("Uploads")


def test_what_does_not_pass_names_the_object_and_what_to_do(s3, bucket):
    store = open_store(f"{bucket}/run")
    store.attempts = 3
    s3.plan = lambda method, path, query: "503" if method == "PUT" else None
    with pytest.raises(StorageError, match=r"s3://.*/run/object.*gave up after 3 tries.*start the same command again"):
        store.put_new("object", b"payload")
    assert sum(entry[0] == "PUT" for entry in s3.log) == 3  # no hidden retries below ours


def test_access_denied_is_not_retried(bucket):
    store = open_store("s3://no-such-bucket-anywhere/run")
    with pytest.raises((StorageError, FileNotFoundError)):
        store.put_new("object", b"payload")


def test_listing_is_paged(s3, bucket):
    store = open_store(f"{bucket}/run")
    names = {f"_work/{i:04d}.tar" for i in range(25)}
    for name in names:
        store.put_new(name, b"x")
    store.put_new("_work/deeper/file", b"x")
    call = store.fs.call_s3
    store.fs.call_s3 = lambda method, **query: call(method, MaxKeys=7, **query)
    try:
        assert {entry.path for entry in store.list("_work")} == names
    finally:
        store.fs.call_s3 = call


def drive(url: str, count: int = 6) -> None:
    with Run.open(url, config={}, limits=ShardLimits(samples=2)) as run:
        run.extend(unit(i) for i in range(count))
        for todo in run.todo():
            run.spool.put(todo, tiny(todo.key, int(todo.key[:12], 16)))
            run.commit_ready()
        run.finish()


def hashes(url: str) -> dict[str, str]:
    store = open_store(url)
    return {e.path: store.sha256(e.path) for e in store.list() if e.path.endswith(".tar")}


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2, 3))])
def test_a_run_over_a_failing_store_ends_with_the_same_bytes(s3, bucket, seed, tmp_path):
    drive(str(tmp_path))
    rng = random.Random(seed)
    s3.plan = lambda method, path, query: (
        rng.choice(["500", "503", "reset", "commit_then_500", "commit_then_reset"]) if rng.random() < 0.15 else None
    )
    for _ in range(3):
        try:
            drive(f"{bucket}/run")
            break
        except StorageError:  # nine faults in a row: the same command again
            continue
    faults = sum(entry[2] is not None for entry in s3.log)
    s3.plan = lambda *request: None
    assert faults > 5
    assert hashes(f"{bucket}/run") == hashes(str(tmp_path))
    assert status(f"{bucket}/run").committed == 6
    report = verify(open_store(f"{bucket}/run"), schema=False)
    assert report.ok, report.problems
