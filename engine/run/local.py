"""The local runner: one unit after another in one child process, which a clip may crash without harm to the others."""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from engine.config import UnrollOptions
from engine.ingest.decoder import DecodeProcess
from engine.ingest.reasons import Reason
from engine.run.work import (
    DEATHS,
    Failure,
    Outcome,
    SetupError,
    load_models,
    process_unit,
    settle,
    step,
)
from shards.run import Spool, Unit

STOPS = {signal.SIGINT, signal.SIGTERM}


def run_local(
    units: Iterable[Unit], options: UnrollOptions, config: str, spool: Spool, stopping: Callable[[], bool]
) -> Iterator[Outcome]:
    """Do the units in order and spool each; stops before the next one when `stopping()`."""
    kind = Guarded if options.runner.isolate else Worker
    with contextlib.closing(kind(options, config, spool)) as worker:
        for unit in units:
            if stopping():
                return
            yield worker.do(unit)


class Worker:
    """Loads the models once and does units, in this process."""

    def __init__(self, options: UnrollOptions, config: str, spool: Spool) -> None:
        self.options, self.config, self.spool = options, config, spool
        self.models = load_models(options)
        self.process = DecodeProcess(options.decode)

    def do(self, unit: Unit) -> Outcome:
        """Decide a unit: a sample or a quarantine in the spool."""

        def whole(watch: Any) -> Any:
            return process_unit(unit, self.models, self.options, self.config, self.process, watch)

        attempt = 1
        done = step("decode", whole)
        while done.failure is not None and not done.failure.final and attempt < self.options.runner.attempts:
            attempt += 1
            done = step("decode", whole)
        size = settle(self.spool, unit, done.value, done.failure, attempt)
        return Outcome(unit, size, done.failure, attempt, done.stages)

    def close(self) -> None:
        self.process.close()


class Guarded:
    """A `Worker` in a child process. A unit that kills it DEATHS times is quarantined; only one is ever in hand, so it
    is the cause."""

    def __init__(self, *work: Any) -> None:
        self.work = work
        self._child: Any = None
        self._pipe: Connection | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="metaworld-worker-")
        self._dump = Path(self._folder.name, "traceback")

    def do(self, unit: Unit) -> Outcome:
        for death in range(DEATHS):
            if self._child is None:
                self._start()
            killed_before = oom_kills()
            try:
                self._pipe.send(unit)
                outcome = self._answer()
                return replace(outcome, attempts=outcome.attempts + death)
            except (EOFError, ConnectionError):
                failure = self._post_mortem(killed_before)
        settle(self.work[2], unit, None, failure, DEATHS)
        return Outcome(unit, 0, failure, DEATHS, {})

    def close(self) -> None:
        """End the child, in the middle of a unit if need be."""
        if self._child is not None:
            self._child.kill()
            self._child.join()
            self._pipe.close()
            self._child = None
        self._folder.cleanup()

    def _start(self) -> None:
        processes = multiprocessing.get_context("spawn")  # what was loaded here must not be forked: threads, clients
        self._pipe, theirs = processes.Pipe()
        self._child = processes.Process(target=_serve, args=(theirs, str(self._dump), *self.work), daemon=True)
        resource_tracker.ensure_running()  # `start` would do so, and let the signals through again
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # for the child, whose parent hears them and lets a unit end
        self._child.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        theirs.close()
        try:
            self._answer()
        except EOFError:
            self._child.join()
            raise SetupError(f"the worker process died while it loaded the models ({_cause(self._child)})") from None

    def _answer(self) -> Any:
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _post_mortem(self, killed_before: int) -> Failure:
        self._child.join()
        cause, child = _cause(self._child), self._child
        self._pipe.close()
        self._child = None
        memory = child.exitcode == -signal.SIGKILL and oom_kills() > killed_before
        reason = Reason.OUT_OF_MEMORY if memory else Reason.WORKER_DIED
        message = "the kernel killed the worker for want of memory" if memory else f"the worker died: {cause}"
        trace = self._dump.read_text() if self._dump.exists() else ""
        return Failure("worker", reason.code, f"{message}, {DEATHS} times with this clip alone", trace, True)


def _serve(pipe: Connection, dump: str, options: UnrollOptions, config: str, spool: Spool) -> None:
    """The child: ready (None), then an Outcome or an exception for every unit, until the pipe closes."""
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    with open(dump, "w") as file:
        faulthandler.enable(file)  # where a crash of native code happened
        try:
            worker = Worker(options, config, spool)
            pipe.send(None)
            with contextlib.closing(worker), contextlib.suppress(EOFError):
                while True:
                    pipe.send(worker.do(pipe.recv()))
        except Exception as error:
            with contextlib.suppress(ConnectionError):
                pipe.send(error)


def _watch(parent: int) -> None:
    """End with the parent, however it ends."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _cause(child: Any) -> str:
    code = child.exitcode
    return f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"


def oom_kills(counter: str = "/proc/vmstat") -> int:
    """Processes that the kernel has killed for want of memory since the machine started."""
    try:
        with open(counter) as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0
