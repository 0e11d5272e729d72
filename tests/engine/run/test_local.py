"""The local runner's child process: what a clip does to it costs no other clip and no byte."""

import contextlib
import signal
import time
import uuid
from pathlib import Path

import psutil
import pytest
from unroll_inputs import shards_of, start, unroll

from engine.run.local import oom_kills
from shards.run import failures, status
from shards.store import open_store
from shards.verify import verify

pytestmark = [pytest.mark.fault, pytest.mark.slow]
GUARDED = "runner.isolate=true"


@pytest.fixture
def memory_group():
    """A control group with 64 MiB beyond what a worker has; skips where this user may not make one."""
    parent = Path("/sys/fs/cgroup/memory")
    limit = "memory.limit_in_bytes"
    if not parent.is_dir():
        parent, limit = Path("/sys/fs/cgroup"), "memory.max"
    group = parent / f"metaworld-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
        (group / limit).write_text(str(64 << 20))  # pages from before a process joins are not counted
    except OSError as error:
        pytest.skip(f"no control group with a memory limit can be made here: {error}")
    yield group
    for _ in range(50):
        try:
            group.rmdir()
            return
        except OSError:  # the killed process is still leaving it
            time.sleep(0.1)


@pytest.fixture(autouse=True)
def no_poison(source):
    yield
    for note in [*source.glob("*.poison"), *source.glob("*.died")]:
        note.unlink()


def test_a_crash_is_its_clips_alone(source, straight, tmp_path):
    """v001 crashes native code each time, v003 once: one run, four samples, and the same bytes when v001 is well."""
    (source / "v001.poison").write_text("segv")
    (source / "v003.poison").write_text("kill_once")
    done = unroll(source, tmp_path / "out", GUARDED)
    assert done.returncode == 2, done.stderr
    assert status(str(tmp_path / "out")).committed == 4
    (failure,) = failures(str(tmp_path / "out"))
    assert (failure["reason"], failure["attempts"], Path(failure["uri"]).name) == ("worker_died", 2, "v001.mp4")
    assert "Segmentation fault" in failure["message"]
    assert "poison.py" in failure["traceback"]  # the stack of the crash
    (source / "v001.poison").unlink()
    done = unroll(source, tmp_path / "well", GUARDED)
    assert done.returncode == 0, done.stderr
    assert shards_of(tmp_path / "well") == shards_of(straight)
    done = unroll(source, tmp_path / "out", GUARDED, "retry=worker_died")
    assert done.returncode == 0, done.stderr
    assert verify(open_store(tmp_path / "out")).ok


def test_the_kernel_kills_for_want_of_memory(source, tmp_path, memory_group):
    """The real killer, in a small control group."""
    (source / "v002.poison").write_text("oom")
    killed = oom_kills()
    done = unroll(source, tmp_path / "out", GUARDED, "limit=4", POISON_GROUP=str(memory_group))
    assert done.returncode == 2, done.stderr
    assert oom_kills() == killed + 2
    (failure,) = failures(str(tmp_path / "out"))
    assert (failure["reason"], Path(failure["uri"]).name) == ("out_of_memory", "v002.mp4")
    assert status(str(tmp_path / "out")).committed == 3


def test_signals_and_deaths_of_the_parent(source, straight, tmp_path):
    """SIGTERM to the whole group lets the clip in hand end; kill -9 of the parent ends the child too."""
    (source / "v000.poison").write_text("sleep 2")
    out = tmp_path / "out"
    for number, code in ((signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)):
        process = start(source, out, GUARDED)
        parent = psutil.Process(process.pid)
        while not any(works(child) for child in parent.children()):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        everyone = parent.children(recursive=True)
        if number == signal.SIGTERM:
            time.sleep(0.5)
            for child in parent.children():
                child.send_signal(number)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode == code
        assert not psutil.wait_procs(everyone, timeout=20)[1]
        now = status(str(out))
        assert now.quarantined == 0
        assert now.todo > 0
    (source / "v000.poison").unlink()
    assert unroll(source, out, GUARDED).returncode == 0
    assert shards_of(out) == shards_of(straight)


def works(child: psutil.Process) -> bool:
    """Whether this is the runner's child (the others decode, or count what multiprocessing shares)."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return "spawn_main" in " ".join(child.cmdline())
    return False


def test_models_that_do_not_load_end_the_run_before_any_clip(source, tmp_path):
    done = unroll(source, tmp_path / "out", GUARDED, POISON_SETUP="1")
    assert done.returncode == 3
    assert "perception does not load: OSError: the weights are gone" in done.stderr
    now = status(str(tmp_path / "out"))
    assert (now.todo, now.quarantined) == (5, 0)


def test_the_verb_of_the_command_line_is_guarded_by_itself():
    from engine.config import load

    assert load(["input=x"]).runner.isolate
