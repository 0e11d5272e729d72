"""kill -9 at every step of the protocol: the next run ends with the bytes of an uninterrupted one."""

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import protocol_child
import pytest

from shards.run import Run, status
from shards.store import open_store
from shards.verify import verify

pytestmark = pytest.mark.fault
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["protocol_child"])


def state(output: Path) -> dict[str, str]:
    """Everything that must not depend on faults: tars, commits, index, quarantines; and that nothing else is left."""
    files = [p for p in output.rglob("*") if p.is_file() and not p.relative_to(output).parts[0].startswith("_lease")]
    return {str(p.relative_to(output)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(files)}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[dict[str, str], int]:
    """(state, number of steps) of a run that nothing disturbed."""
    output, answers = tmp_path_factory.mktemp("uninterrupted"), processes.Queue()
    child = processes.Process(target=protocol_child.count, args=(str(output), answers))
    child.start()
    steps = answers.get(timeout=60)
    child.join()
    return state(output), steps


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("part", [0] + [pytest.param(part, marks=pytest.mark.slow) for part in range(1, 8)])
def test_killed_at_every_step(uninterrupted, tmp_path, after, part):
    expected, steps = uninterrupted
    assert steps > 40  # the wrapped calls are really the ones the protocol makes
    for step in range(part, steps, 8):
        output = tmp_path / str(step)
        child = processes.Process(target=protocol_child.drive_and_die, args=(str(output), step, after))
        child.start()
        child.join(timeout=60)
        assert child.exitcode == -signal.SIGKILL, f"step {step} was not reached"
        protocol_child.drive(str(output))  # at once: the dead process's lease does not hold it up
        found = {k: v for k, v in state(output).items() if not k.startswith("_tmp/")}
        assert found == expected, f"killed {'after' if after else 'before'} step {step}"
        assert verify(open_store(output), schema=False).ok


def test_killed_again_and_again(uninterrupted, tmp_path):
    expected, steps = uninterrupted
    for step in range(3, steps, 7):
        child = processes.Process(target=protocol_child.drive_and_die, args=(str(tmp_path), step, False))
        child.start()
        child.join(timeout=60)
    protocol_child.drive(str(tmp_path))
    assert {k: v for k, v in state(tmp_path).items() if not k.startswith("_tmp/")} == expected


def test_a_stopped_driver_that_wakes_up_after_take_over_is_harmless(uninterrupted, tmp_path):
    """SIGSTOP in mid-run, another driver takes over and finishes, SIGCONT: the zombie stops and changes nothing."""
    script = (
        "import sys; sys.path[:0] = sys.argv[2:4]; import os, signal, protocol_child\n"
        "stop = lambda n: os.kill(os.getpid(), signal.SIGSTOP) if n == int(sys.argv[4]) else None\n"
        "protocol_child.count_steps(stop)\n"
        "protocol_child.drive(sys.argv[1], ttl_s=0.3)"
    )
    here = Path(__file__).parent
    for step in (5, uninterrupted[1] // 2, uninterrupted[1] - 12):
        output = tmp_path / str(step)
        command = [sys.executable, "-c", script, output, here, here.parent / "shards", str(step)]
        zombie = subprocess.Popen([str(c) for c in command], stderr=subprocess.PIPE, text=True)
        try:
            while os.waitid(os.P_PID, zombie.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is None:
                time.sleep(0.02)
            time.sleep(0.7)  # two ttl of silence
            protocol_child.drive(str(output))
            before = state(output)
        finally:
            os.kill(zombie.pid, signal.SIGCONT)
        _, errors = zombie.communicate(timeout=60)
        assert "LeaseLost" in errors
        found = {k: v for k, v in state(output).items() if not k.startswith("_tmp/")}
        # a spool file the zombie was writing may stay behind as garbage; what is committed does not change
        assert {k: v for k, v in found.items() if not k.startswith("_work/")} == uninterrupted[0]
        assert {k: v for k, v in before.items() if k in found} == {k: v for k, v in found.items() if k in before}


def test_two_drivers_at_once(tmp_path):
    """Many drivers start together; each unit is committed once and the losers say why."""
    start, results = processes.Barrier(3), processes.Queue()
    children = [processes.Process(target=_compete, args=(str(tmp_path), start, results)) for _ in range(3)]
    for child in children:
        child.start()
    outcomes = [results.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert "done" in outcomes
    assert set(outcomes) <= {"done", "LeaseHeld"}
    found = status(str(tmp_path))
    assert (found.planned, found.committed, found.quarantined) == (7, 6, 1)
    assert verify(open_store(tmp_path), schema=False).ok


def _compete(output: str, start, results) -> None:
    start.wait()
    try:
        protocol_child.drive(output)
        results.put("done")
    except Exception as error:
        results.put(type(error).__name__)


def test_a_stale_lease_of_another_machine_ends(tmp_path):
    store = open_store(tmp_path)
    protocol_child.drive(str(tmp_path))
    for path in ("_lease.json", "_lease/000000.json"):
        record = json.loads(store.read(path))
        record |= {
            "released": False,
            "process": record["process"] | {"host": "elsewhere"},
            "heartbeat": time.time() - 3600,
        }
        store.put(path, json.dumps(record).encode())
    with Run.open(str(tmp_path), config=protocol_child.CONFIG, limits=protocol_child.LIMITS) as run:
        assert run.lease.epoch == 1
