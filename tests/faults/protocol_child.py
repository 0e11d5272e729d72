"""Drives a run in a child process that kills itself (-9) at a chosen step of the file system.

A step is one call of os.link, os.replace, the store's fsync or a deletion; the child dies right before or right after
it. Nothing in the product knows about this: the calls are wrapped here.
"""

import os
import signal
from collections.abc import Callable

from shard_samples import tiny, unit

from shards import store
from shards.run import Run, ShardLimits

CONFIG = {"test": 1}
LIMITS = ShardLimits(samples=3)
UNITS, BAD = 7, 2


def drive(output: str, *, ttl_s: float = 30.0) -> None:
    """One whole run: plan, work, commits, index."""
    with Run.open(output, config=CONFIG, limits=LIMITS, lease_ttl_s=ttl_s) as run:
        run.extend(unit(i) for i in range(UNITS))
        for todo in run.todo():
            number = int(todo.key[:12], 16)
            if number == BAD:
                run.spool.quarantine(todo, stage="decode", reason="zero_frames", traceback="...")
            else:
                run.spool.put(todo, tiny(todo.key, number))
            run.commit_ready()
        run.finish()


def drive_and_die(output: str, step: int, after: bool) -> None:
    """`drive`, killed at the step-th step; returns when there are fewer steps."""
    count_steps(lambda number: None if number != step else os.kill(os.getpid(), signal.SIGKILL), after)
    drive(output)


def count_steps(at: Callable[[int], None], after: bool = False) -> Callable[[], int]:
    """Call at(0), at(1), ... at every step from now on in this process; returns how many there were."""
    steps = 0

    def wrap(function):
        def call(*args, **kwargs):
            nonlocal steps
            number, steps = steps, steps + 1
            if not after:
                at(number)
            result = function(*args, **kwargs)
            if after:
                at(number)
            return result

        return call

    os.link, os.replace = wrap(os.link), wrap(os.replace)
    store._fsync = wrap(store._fsync)
    store.Store.delete = wrap(store.Store.delete)
    return lambda: steps


def count(output: str, answers) -> None:
    steps = count_steps(lambda number: None)
    drive(output)
    answers.put(steps())
