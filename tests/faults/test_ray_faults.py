"""Ray beaten: workers, nodes, heads and drivers die, buckets fail, videos change. Always in the end:

committed = planned - quarantined, no key twice, a reason for every quarantine, and the bytes of an uninterrupted run.
"""

import json
import signal
import socket
import subprocess
import tarfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import poison
import psutil
import pytest
import unroll_inputs
from faulty_s3 import FaultyS3, point_at, serve
from unroll_inputs import WORDS, run_on_ray, shards_of, start, unroll, worker_environment, write_input
from video_files import numbered, write_audio, write_video

from engine.config import load
from engine.ingest.decoder import DecodeProcess
from engine.ingest.reasons import Reason
from engine.run import logs
from engine.run.drive import CLUSTER, drive
from engine.run.progress import read_events
from shards.__main__ import main as shards_command
from shards.records import read_commits
from shards.run import failures, status
from shards.store import Store, open_store
from shards.verify import verify

pytestmark = [pytest.mark.fault, pytest.mark.slow, pytest.mark.xdist_group("ray")]  # one cluster at a time
RAY = ("runner=ray", "runner.ray.cpus=2", "runner.ray.store_gb=0.2")
CLIPS = 12


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write_input(tmp_path_factory.mktemp("videos"), CLIPS)


@pytest.fixture(scope="module")
def straight(source, tmp_path_factory) -> Path:
    """What the local runner makes of the source, undisturbed."""
    out = tmp_path_factory.mktemp("straight") / "out"
    assert drive(load([f"input={source}", f"output={out}", *WORDS])) == 0
    return out


@pytest.fixture
def bucket(monkeypatch) -> Iterator[tuple[Store, FaultyS3]]:
    """(an empty bucket, the server that has it)."""
    app = FaultyS3()
    with serve(app) as url:
        point_at(url, monkeypatch)
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        store = open_store(f"s3://{name}")
        store.fs.mkdir(name)
        yield store, app


def fill(store: Store, source: Path, *videos: str) -> None:
    """Put videos (all by default) with their sidecars into in/."""
    for name in videos or sorted(path.stem for path in source.glob("*.mp4")):
        for path in [source / f"{name}.mp4", *(source / name).iterdir()]:
            store.put(f"in/{path.relative_to(source)}", path.read_bytes())


def check(out: str | Path, quarantined: dict[str, str] | None = None) -> None:
    """The promise. `quarantined`: name of the video -> reason."""
    quarantined, now = quarantined or {}, status(str(out))
    assert (now.committed, now.todo, now.spooled) == (now.planned - now.quarantined, 0, 0)
    keys = Counter(s["key"] for record in read_commits(open_store(out)) for s in record["samples"])
    assert len(keys) == now.committed
    assert set(keys.values()) <= {1}
    given_up = {Path(f["uri"]).name: f["reason"] for f in failures(str(out))}
    assert given_up == quarantined
    assert set(given_up.values()) <= {r.code for r in Reason}
    report = verify(open_store(out))
    assert report.ok, report.problems


def samples_of(out: Path) -> dict[str, bytes]:
    """Member name -> bytes over all committed tars: for runs whose shards differ because other clips are missing."""
    members = {}
    for record in read_commits(open_store(out)):
        with tarfile.open(out / record["shard"]) as tar:
            members |= {m.name: tar.extractfile(m).read() for m in tar}
    return members


def without_frames(video: bytes) -> bytes:
    """An mp4 with its index, and zeros where its frames were."""
    start = video.index(b"mdat")
    stop = start - 4 + int.from_bytes(video[start - 4 : start], "big")
    return video[: start + 4] + bytes(stop - start - 4) + video[stop:]


def wait_for(out: Path, pattern: str, process: subprocess.Popen) -> None:
    while not list(out.glob(pattern)):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def children(process: subprocess.Popen, *names: str) -> list[psutil.Process]:
    everyone = psutil.Process(process.pid).children(recursive=True)
    return [child for child in everyone if not names or child.name() in names]


def test_many_faults_in_one_run(tmp_path, monkeypatch):
    """Good clips, clips that kill or exhaust workers, files that are broken, hang the decoder while planning or later,
    change or vanish meanwhile."""
    source = write_input(tmp_path / "in", 13)
    monkeypatch.setattr(DecodeProcess, "ask", poison.hanging(DecodeProcess.ask))  # this process surveys
    (source / "v011.hang").write_text("survey")
    (source / "v012.hang").write_text("frames")
    notes = {
        "v000": "change v009.mp4",
        "v001": "remove v010.mp4",
        "v003": "segv",
        "v004": "memory",
        "v006": "kill_once",
    }
    for name, words in notes.items():
        (source / f"{name}.poison").write_text(words)
    whole = (source / "v002.mp4").read_bytes()
    (source / "x_empty.mp4").write_bytes(b"")
    (source / "x_cut.mp4").write_bytes(whole[:900])
    (source / "x_text.mp4").write_text("no video")
    write_audio(source / "x_audio.mp4")
    write_video(source / "x_still.mp4", [numbered(0)])
    (source / "x_zero.mp4").write_bytes(without_frames(whole))
    setups = tmp_path / "setups"
    setups.mkdir()
    for i in range(2):
        (setups / str(i)).touch()
    words = ("runner.ray.in_flight=2", "runner.ray.actors=1", "decode.stall_s=10")
    assert run_on_ray(source, tmp_path / "out", *words, POISON_SETUPS=str(setups)) == 2
    assert not list(setups.iterdir())  # two set-ups failed, the third did not
    assert (source / "v006.died").exists()
    broken = {f"x_{name}.mp4": "not_a_video" for name in ("empty", "cut", "text")}
    broken |= {"x_audio.mp4": "no_video_stream", "x_still.mp4": "too_short", "x_zero.mp4": "no_frames"}
    mixed = {"v003.mp4": "worker_died", "v004.mp4": "out_of_memory", "v011.mp4": "timeout", "v012.mp4": "timeout"}
    changed = {"v009.mp4": "source_changed", "v010.mp4": "vanished"}
    check(tmp_path / "out", broken | mixed | changed)

    for path in [*source.glob("*.poison"), *source.glob("*.hang"), *source.glob("x_*")]:
        path.unlink()
    assert drive(load([f"input={source}", f"output={tmp_path / 'calm'}", *WORDS])) == 0
    found, calm = samples_of(tmp_path / "out"), samples_of(tmp_path / "calm")
    assert len({name.split(".")[0] for name in found}) == 7
    assert found.items() <= calm.items()


def test_nodes_are_lost_and_another_joins(source, straight, tmp_path):
    """Both nodes that the run began on are killed in the middle of it: the rest is done by one that joined later, and
    nothing by the head, which has no CPUs."""
    from engine.run.cluster import prepare_local

    prepare_local()
    import ray
    from ray.cluster_utils import Cluster

    out = tmp_path / "out"
    slow = [source / f"v{i:03d}.poison" for i in range(4, CLIPS)]
    for note in slow:
        note.write_text("sleep 3")
    asked = source / "v001.poison"
    asked.write_text("node")
    node = {"num_cpus": 1, "object_store_memory": 150 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 150 << 20})
    head, first, second = cluster.head_node.node_id, cluster.add_node(**node), cluster.add_node(**node)
    words = [f"input={source}", f"output={out}", *WORDS, "runner=ray", "runner.ray.in_flight=4"]
    try:
        ray.init(
            address=cluster.address,
            runtime_env=worker_environment(),
            log_to_driver=False,
            logging_level="warning",
        )
        with ThreadPoolExecutor(1) as threads:  # Ray starts nodes in the main thread only
            run = threads.submit(drive, load(words))
            while not list(out.glob("_work/*.tar")):
                assert not run.done(), run.result()
                time.sleep(0.02)
            cluster.remove_node(first, allow_graceful=False)
            cluster.add_node(**node)
            cluster.remove_node(second, allow_graceful=False)
            left = status(str(out)).todo
            assert run.result(timeout=200) == 0
    finally:
        for note in [*slow, asked]:
            note.unlink()
        ray.shutdown()
        cluster.shutdown()
    assert left > 0
    assert asked.with_suffix(".node").read_text() != head
    check(out)
    assert shards_of(out) == shards_of(straight)


def test_sigterm_drains_and_a_second_driver_is_refused(source, straight, tmp_path, capsys):
    out = tmp_path / "out"
    process = start(source, out, *RAY)
    wait_for(out, "_work/*.tar", process)
    assert drive(load([f"input={source}", f"output={out}", *WORDS])) == 5
    assert "another driver is at work" in capsys.readouterr().err
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, errors
    now = status(str(out))
    assert now.quarantined == 0
    assert 0 < now.committed + now.spooled < CLIPS
    assert not now.lease["alive"]
    assert unroll(source, out).returncode == 0
    check(out)
    assert shards_of(out) == shards_of(straight)


def test_the_driver_is_killed_and_started_again(source, straight, tmp_path):
    out = tmp_path / "out"
    process = start(source, out, *RAY)
    wait_for(out, "_commits/000000.json", process)
    everyone = children(process)
    process.kill()
    process.wait()
    psutil.wait_procs(everyone, timeout=60)  # Ray's processes end with the driver; workers may still spool
    done = unroll(source, out, *RAY)
    assert done.returncode == 0, done.stderr
    check(out)
    assert shards_of(out) == shards_of(straight)


def test_the_head_dies_and_a_new_cluster_goes_on(source, bucket):
    """The driver says that the cluster is lost and ends with its code; another cluster goes on from the bucket."""
    store, _ = bucket
    fill(store, source)
    place, out = f"{store.url}/in", open_store(f"{store.url}/out")
    process = start(place, out.url, *RAY)
    while not out.exists("_commits/000000.json"):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    everyone, head = children(process), children(process, "gcs_server", "raylet")
    assert len(head) == 2
    for part in head:
        part.kill()
    try:
        _, errors = process.communicate(timeout=150)
    finally:
        process.kill()
    assert process.returncode == CLUSTER, errors
    assert "cluster: the head" in errors
    assert "start the same command again on a cluster that lives" in errors
    now = status(out.url)
    assert now.quarantined == 0  # no clip is to blame
    assert not now.lease["alive"]
    psutil.wait_procs(everyone, timeout=60)
    done = unroll(place, out.url, *RAY)
    assert done.returncode == 0, done.stderr
    check(out.url)
    calm = open_store(f"{store.url}/calm")  # the place of the videos is in the samples, so this is not `straight`
    assert drive(load([f"input={place}", f"output={calm.url}", *WORDS])) == 0
    for entry in calm.list():
        if entry.path.endswith(".tar"):
            assert out.read(entry.path) == calm.read(entry.path)


def test_a_cluster_that_is_not_there(source, tmp_path, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = [f"input={source}", f"output={tmp_path / 'out'}", *WORDS, "runner=ray", f"runner.ray.address={address}"]
    assert drive(load([*words, "limit=1"])) == CLUSTER
    assert f"no cluster at runner.ray.address={address}" in capsys.readouterr().err
    assert status(str(tmp_path / "out")).todo == 1


def test_rays_memory_monitor_ends_a_greedy_clip_and_no_other(source, straight, tmp_path, monkeypatch):
    """The monitor's threshold lies 5 GiB above what the machine uses now, room for the cluster and for whatever else
    runs here; one clip wants 8 GiB."""
    memory = psutil.virtual_memory()
    if memory.available < 10 * 2**30:
        pytest.skip("needs 10 GiB of free memory")
    threshold = (memory.total - memory.available + 5 * 2**30) / memory.total
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{threshold:.4f}")
    (source / "v002.poison").write_text("hog 8")
    try:
        code = run_on_ray(source, tmp_path / "out", "runner.ray.in_flight=3", "runner.ray.actors=1", "limit=6")
    finally:
        (source / "v002.poison").unlink()
    assert code == 2
    check(tmp_path / "out", {"v002.mp4": "out_of_memory"})
    assert samples_of(tmp_path / "out").items() <= samples_of(straight).items()


def test_from_bucket_to_bucket_over_a_failing_store(source, bucket, tmp_path, capsys):
    """The first write of every spool file, tar and record fails. Status and logs need no Ray."""
    store, app = bucket
    fill(store, source, "v000", "v001", "v002", "v003")
    store.put("in/text.mp4", b"no video")
    failed = set()

    def once(method, path, query):
        if method == "PUT" and any(p in path for p in ("/_work/", "/_commits/", ".tar")) and path not in failed:
            failed.add(path)
            return ("500", "503", "commit_then_500")[len(failed) % 3]
        return None

    app.plan = once
    words = [f"input={store.url}/in", *WORDS]
    assert drive(load([*words, f"output={store.url}/out", *RAY])) == 2
    assert len(failed) >= 4 + 2 + 2
    check(f"{store.url}/out", {"text.mp4": "not_a_video"})
    assert drive(load([*words, f"output={tmp_path / 'local'}"])) == 2
    for entry in open_store(f"{store.url}/out").list():
        if entry.path.endswith(".tar"):
            assert store.read(f"out/{entry.path}") == (tmp_path / "local" / entry.path).read_bytes()
    capsys.readouterr()
    assert shards_command(["info", f"{store.url}/out", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["samples"], facts["driver"]) == (4, "none")
    assert logs.main([f"{store.url}/out"]) == 0
    text = capsys.readouterr().out
    assert "not_a_video" in text
    assert f"{store.url}/in/text.mp4" in text


def test_forty_clips_through_a_small_object_store(tmp_path, monkeypatch):
    """40 clips of 6 MB of frames, depth and masks through 150 MiB: what is done with leaves the store."""
    size = {"HEIGHT": 128, "WIDTH": 224, "FRAMES": 17}
    for name, value in size.items():
        monkeypatch.setattr(unroll_inputs, name, value)
    source, out = write_input(tmp_path / "in", 40), tmp_path / "out"
    words = ["clip.frames=17", "clip.min_frames=17", "render.size=[128,224]", "shards.samples=16"]
    limits = ["runner.ray.store_gb=0.1465", "runner.ray.in_flight=24"]
    done = unroll(source, out, *words, *RAY[:2], *limits)
    assert done.returncode == 0, done.stderr
    check(out)
    whole = [event for event in read_events(open_store(out)) if event["stage"] == "unit"]
    assert len(whole) == 40
    assert all(event["attempts"] == 1 and event["status"] == "done" for event in whole)
