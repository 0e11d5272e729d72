"""The Ray runner: CPU task decodes -> actor with the models perceives -> CPU task unrolls, packs and spools.

Frames and depth move between steps through Ray's object store and never through the driver; the driver sees small
`Step` records. At most `runner.ray.in_flight` clips per actor are anywhere between the first and the last step.

Errors in code are retried like in the local runner. When a process or a node dies, every clip that was in flight
may have been the cause: these suspects run again one at a time, and only a clip that kills its workers twice while
it is alone is quarantined.
"""

import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from engine.config import UnrollOptions
from engine.ingest.decoder import DecodeProcess
from engine.ingest.reasons import Reason
from engine.perception.registry import used
from engine.run.threads import pin
from engine.run.work import Failure, Outcome, SetupError, Step, decode, finish, load_models, perceive, settle, step
from engine.stopwatch import Stopwatch
from shards.run import Spool, Unit

SOLO_DEATHS = 2  # a clip that kills its workers this often while alone is the cause


@dataclass
class _Job:
    """A unit on its way."""

    unit: Unit
    attempt: int = 1
    solo_deaths: int = 0
    stage: str = "decode"
    seconds: dict[str, float] = field(default_factory=dict)
    peak_mb: float = 0.0
    clip: Any = None  # references to what the steps made
    perceived: Any = None
    actor: int = -1


def prepare_local() -> None:
    """Set the environment of a cluster on this machine, before `ray` is imported.

    A token of this process's own: nobody else on the machine can hand work to the cluster.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # num_gpus=0 leaves CUDA_VISIBLE_DEVICES alone


@contextmanager
def cluster(options: UnrollOptions) -> Iterator[Any]:
    """The `ray` module, connected: to a new cluster of this machine, or to the one at runner.ray.address."""
    ray_options = options.runner.ray
    if ray_options.address == "local":
        prepare_local()
    import ray

    if ray.is_initialized():  # a cluster that the caller made
        yield ray
        return
    if ray_options.address == "local":
        context = ray.init(
            address="local",
            num_cpus=ray_options.cpus or None,
            include_dashboard=ray_options.dashboard,
            dashboard_host="127.0.0.1",
            object_store_memory=_store_bytes(options),
            log_to_driver=False,
            logging_level="warning",
            _node_ip_address="127.0.0.1",
        )
    else:
        context = ray.init(address=ray_options.address, log_to_driver=False, logging_level="warning")
    if ray_options.dashboard and context.dashboard_url:
        print(f"dashboard: http://{context.dashboard_url}", flush=True)
    try:
        yield ray
    finally:
        ray.shutdown()


def run_ray(
    units: Iterable[Unit], options: UnrollOptions, config: str, spool: Spool, stopping: Callable[[], bool]
) -> Iterator[Outcome]:
    """Do the units on the cluster, spooling each; outcomes in the order they finish."""
    with cluster(options) as ray:
        yield from _Driver(ray, options, config, spool).run(iter(units), stopping)


class _Driver:
    def __init__(self, ray: Any, options: UnrollOptions, config: str, spool: Spool) -> None:
        self.ray, self.options, self.config, self.spool = ray, options, config, spool
        # a failed system step comes back to us: Ray itself must not run a clip again beside its suspects
        self.decode = ray.remote(num_cpus=1, max_retries=0, num_returns=2)(_decode)
        self.finish = ray.remote(num_cpus=1, max_retries=0)(_finish)
        gpus, count = self._placement()
        self.actor_type = ray.remote(num_cpus=0, num_gpus=gpus, max_restarts=0, max_task_retries=0)(Perception)
        self.shared = ray.put(options)
        self.actors: list[Any] = [None] * count
        self.load = [0] * count
        self.flying: dict[Any, _Job] = {}
        self.again: deque[_Job] = deque()
        self.suspects: deque[_Job] = deque()

    def run(self, units: Iterator[Unit], stopping: Callable[[], bool]) -> Iterator[Outcome]:
        for i in range(len(self.actors)):
            self._start_actor(i)
        while True:
            solo = bool(self.suspects)
            room = 1 if solo else self.options.runner.ray.in_flight * len(self.actors)
            while len(self.flying) < room:
                job = self._next(units, solo, stopping())
                if job is None:
                    break
                self._submit(job)
            if not self.flying:
                return
            ready, _ = self.ray.wait(list(self.flying), num_returns=1)
            yield from self._advance(ready[0])

    def _next(self, units: Iterator[Unit], solo: bool, stopping: bool) -> _Job | None:
        if stopping:
            return None
        if solo:
            return self.suspects[0]  # it stays there until it is decided
        if self.again:
            return self.again.popleft()
        unit = next(units, None)
        return _Job(unit) if unit is not None else None

    def _submit(self, job: _Job) -> None:
        job.stage, job.seconds, job.peak_mb = "decode", {}, 0.0
        reference, job.clip = self.decode.remote(job.unit, self.shared)
        self.flying[reference] = job

    def _advance(self, reference: Any) -> Iterator[Outcome]:
        job = self.flying.pop(reference)
        try:
            done: Step = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            yield from self._died(job, error)
            return
        finally:
            if job.stage == "perceive":
                self.load[job.actor] -= 1
        job.seconds |= {name: job.seconds.get(name, 0) + s for name, s in done.seconds.items()}
        job.peak_mb = max(job.peak_mb, done.peak_mb)
        if done.failure is not None:
            if not done.failure.final and job.attempt < self.options.runner.attempts:
                job.attempt += 1
                if not self._is_solo(job):
                    self.again.append(job)
            else:
                yield self._settled(job, done.failure, 0)
        elif job.stage == "decode":
            job.stage, job.actor = "perceive", min(range(len(self.load)), key=self.load.__getitem__)
            self.load[job.actor] += 1
            following, job.perceived = self.actors[job.actor].process.options(num_returns=2).remote(job.clip)
            self.flying[following] = job
        elif job.stage == "perceive":
            job.stage = "finish"
            following = self.finish.remote(job.unit, job.clip, job.perceived, self.shared, self.config, self.spool)
            self.flying[following] = job
        else:
            yield self._settled(job, None, done.value)

    def _settled(self, job: _Job, failure: Failure | None, size: int) -> Outcome:
        if failure is not None:
            settle(self.spool, job.unit, None, failure, job.attempt)
        if self._is_solo(job):
            self.suspects.popleft()
        return Outcome(job.unit, size, failure, job.attempt, job.seconds, job.peak_mb)

    def _is_solo(self, job: _Job) -> bool:
        """Suspects fly alone, the first of them at a time, and leave the list when they are decided."""
        return bool(self.suspects) and self.suspects[0] is job

    def _died(self, job: _Job, error: Exception) -> Iterator[Outcome]:
        """A worker, an actor or a node is gone, and with it this job's step."""
        for i in range(len(self.actors)):
            if not self._alive(i):
                self._start_actor(i)
        if not self._is_solo(job):
            self.suspects.append(job)
            return
        job.solo_deaths += 1
        if job.solo_deaths >= SOLO_DEATHS:
            memory = isinstance(error, self.ray.exceptions.OutOfMemoryError)
            reason = Reason.OUT_OF_MEMORY if memory else Reason.WORKER_DIED
            message = " ".join(str(error).split())[:500]
            yield self._settled(job, Failure(job.stage, reason.code, message, "", True), 0)

    def _placement(self) -> tuple[float, int]:
        """(GPUs of one actor, number of actors)."""
        wanted, resources = self.options.runner.ray, self.ray.cluster_resources()
        gpus = wanted.gpus
        if gpus < 0:
            gpus = 1.0 if resources.get("GPU", 0) and "foundation" in used(self.options.perception) else 0.0
        most = int(resources.get("GPU", 0) // gpus) if gpus else int(resources.get("CPU", 1) // 2)
        return gpus, wanted.actors or max(1, most)

    def _start_actor(self, i: int) -> None:
        error: Exception | None = None
        for _ in range(max(1, self.options.runner.ray.setup_attempts)):
            actor = self.actor_type.remote(self.shared)
            try:
                self.ray.get(actor.setup.remote())
                self.actors[i] = actor
                return
            except self.ray.exceptions.RayError as failed:
                error = failed
                self.ray.kill(actor)
        raise SetupError(f"the perception actor does not start: {error}")

    def _alive(self, i: int) -> bool:
        try:
            self.ray.get(self.actors[i].ping.remote(), timeout=600)
            return True
        except self.ray.exceptions.RayError:
            return False


class Perception:
    """The models of one worker, resident."""

    def __init__(self, options: UnrollOptions) -> None:
        self.options = options

    def setup(self) -> None:
        """Load the models: apart from the constructor, so that a failure comes back as an error."""
        self.models = load_models(self.options)

    def process(self, clip: Any) -> tuple[Step, Any]:
        """(step without its value, what was perceived)."""
        done = step("track", lambda watch: perceive(clip, self.models, watch))
        return replace(done, value=None), done.value

    def ping(self) -> None:
        """Answer, when alive."""


_decoder: DecodeProcess | None = None  # one per Ray worker process, kept from task to task


def _decode(unit: Unit, options: UnrollOptions) -> tuple[Step, Any]:
    global _decoder
    if _decoder is None:
        pin(options.threads)
        _decoder = DecodeProcess(options.decode)
    process = _decoder
    done = step("decode", lambda watch: decode(unit, options, process, watch))
    return replace(done, value=None), done.value


def _finish(unit: Unit, clip: Any, perceived: Any, options: UnrollOptions, config: str, spool: Spool) -> Step:
    def action(watch: Stopwatch) -> int:
        members = finish(clip, perceived, options, config, watch)
        with watch("spool"):
            return settle(spool, unit, members, None, 1)

    pin(options.threads)
    return step("scene", action)


def _store_bytes(options: UnrollOptions) -> int | None:
    return int(options.runner.ray.store_gb * 2**30) or None
