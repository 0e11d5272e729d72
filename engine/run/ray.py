"""The Ray runner: CPU task decodes -> actor with the models perceives -> CPU task unrolls, packs and spools.

Frames and depth move between steps through Ray's object store and never through the driver; the driver sees small
`Step` records. At most `runner.ray.in_flight` clips per actor, and no more than fit `runner.ray.budget_gb`, are
anywhere between the first and the last step: while an actor perceives some, others are decoded and unrolled. On a GPU
an actor takes two clips at a time, so that the GPU has work while one of them is in steps of the CPU. A decoded clip
goes to the first actor with room, so a slow one holds up nobody, and a long video is only many clips.
Nodes may join and leave: actors are added and replaced as the cluster's resources change.

Errors in code are retried like in the local runner. When a process or a node dies, every clip that was in flight
may have been the cause: these suspects run again one at a time, and only a clip that kills its workers twice while
it is alone is quarantined.
"""

import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from engine.config import UnrollOptions
from engine.ingest.decoder import DecodeProcess
from engine.ingest.reasons import Reason
from engine.perception.registry import used
from engine.run.cluster import ClusterLost, cluster
from engine.run.metrics import Metrics
from engine.run.options import STEP_CPUS, actor_cpus
from engine.run.split import is_split, share_of_all, split_models
from engine.run.threads import pin
from engine.run.work import (
    DEATHS,
    Failure,
    Meter,
    Outcome,
    SetupError,
    Step,
    Use,
    decode,
    finish,
    load_models,
    perceive,
    settle,
    step,
)
from shards.run import Spool, Unit
from shards.store import StorageError

LOOK_S = 5.0  # seconds between two looks at the cluster
LOST_S = 20.0  # a head that is silent for so long is gone; Ray itself ends a driver without a word after 60
PING_S = 30.0  # an idle actor answers in milliseconds
# Of a clip in the object store: RGB 3, two depths and their confidence in float32 12, labels, dynamic and sky 3
BYTES_PER_PIXEL = 18
STORE_SHARE = 0.6  # of the object store for clips: a step's arguments and results are there together


@dataclass
class _Job:
    """A unit on its way."""

    unit: Unit
    attempt: int = 1
    solo_deaths: int = 0
    step: str = "decode"
    sent: float = 0.0  # when the present step was ordered
    stages: dict[str, Use] = field(default_factory=dict)
    clip: Any = None  # references to what the steps made
    perceived: Any = None
    actor: int = -1


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
        self.decode = ray.remote(num_cpus=STEP_CPUS, max_retries=0, num_returns=2)(_decode)
        self.finish = ray.remote(num_cpus=STEP_CPUS, max_retries=0)(_finish)
        self.shared = ray.put(options)
        self.metrics = Metrics()
        self.actors: dict[int, Any] = {}  # those that are set up
        self.starting: dict[Any, Any] = {}  # reference to set-up -> actor
        self.idle: deque[int] = deque()  # an actor stands here once for every clip that it can take
        self.started = self.setup_failures = 0
        self.looked = -LOOK_S
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self.head, self.heard = (host.strip("[]"), int(port)), time.monotonic()
        self.flying: dict[Any, _Job] = {}
        self.waiting: deque[_Job] = deque()  # decoded, for the next idle actor: none queues behind a slow clip
        self.again: deque[_Job] = deque()
        self.suspects: deque[_Job] = deque()

    def run(self, units: Iterator[Unit], stopping: Callable[[], bool]) -> Iterator[Outcome]:
        while True:
            self._grow()
            self._launch(units, stopping)
            if not self.flying and not self.waiting:
                return
            ready, _ = self.ray.wait([*self.flying, *self.starting], num_returns=1, timeout=LOOK_S)
            for reference in ready:
                if reference in self.starting:
                    self._set_up(reference)
                else:
                    yield from self._advance(reference)

    def _launch(self, units: Iterator[Unit], stopping: Callable[[], bool]) -> None:
        """Fill the room for clips, and give decoded clips to idle actors."""
        solo = bool(self.suspects)
        room = 1 if solo else self.room
        while len(self.flying) + len(self.waiting) < room:
            job = self._next(units, solo, stopping())
            if job is None:
                break
            self._submit(job)
        while self.waiting and self.idle:
            job, job.actor = self.waiting.popleft(), self.idle.popleft()
            following, job.perceived = self.actors[job.actor].process.options(num_returns=2).remote(job.clip)
            self.flying[following] = job
        self.metrics.flying(len(self.flying) + len(self.waiting))

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
        job.step, job.stages, job.sent = "decode", {}, time.monotonic()
        reference, job.clip = self.decode.remote(job.unit, self.shared)
        self.flying[reference] = job

    def _advance(self, reference: Any) -> Iterator[Outcome]:
        job = self.flying.pop(reference)
        if job.step == "perceive" and job.actor in self.actors:
            self.idle.append(job.actor)
        try:
            done: Step = self.ray.get(reference)
        except StorageError as error:  # of the worker's spool
            raise StorageError(str(error)) from None
        except self.ray.exceptions.RayError as error:
            yield from self._died(job, error)
            return
        job.stages |= _with_queue(done.stages, time.monotonic() - job.sent)
        job.sent = time.monotonic()
        if done.failure is not None:
            if not done.failure.final and job.attempt < self.options.runner.attempts:
                job.attempt += 1
                if not self._is_solo(job):
                    self.again.append(job)
            else:
                yield self._settled(job, done.failure, 0)
        elif job.step == "decode":
            job.step = "perceive"
            self.waiting.append(job)
        elif job.step == "perceive":
            job.step = "finish"
            following = self.finish.remote(job.unit, job.clip, job.perceived, self.shared, self.config, self.spool)
            self.flying[following] = job
        else:
            yield self._settled(job, None, done.value)

    def _settled(self, job: _Job, failure: Failure | None, size: int) -> Outcome:
        if failure is not None:
            settle(self.spool, job.unit, None, failure, job.attempt)
        if self._is_solo(job):
            self.suspects.popleft()
        job.clip = job.perceived = None
        outcome = Outcome(job.unit, size, failure, job.attempt, job.stages)
        self.metrics.decided(outcome)
        return outcome

    def _is_solo(self, job: _Job) -> bool:
        """Suspects fly alone, the first of them at a time, and leave the list when they are decided."""
        return bool(self.suspects) and self.suspects[0] is job

    def _died(self, job: _Job, error: Exception) -> Iterator[Outcome]:
        """A worker, an actor or a node is gone, and with it this job's step."""
        while not self._head_answers():  # no clip is to blame for a lost cluster
            time.sleep(1)
        for i in {i for i in self.idle if not self._alive(i)}:  # the busy ones tell by their own clips
            self.idle = deque(other for other in self.idle if other != i)
            self.ray.kill(self.actors.pop(i))
        self.looked = -LOOK_S
        job.clip = job.perceived = None
        if not self._is_solo(job):
            self.suspects.append(job)
            return
        job.solo_deaths += 1
        if job.solo_deaths >= DEATHS:
            memory = isinstance(error, self.ray.exceptions.OutOfMemoryError)
            reason = Reason.OUT_OF_MEMORY if memory else Reason.WORKER_DIED
            message = " ".join(str(error).split())[:500]
            yield self._settled(job, Failure(job.step, reason.code, message, "", True), 0)

    # ------------------------------------------------------------------------------------------- the cluster's size

    def _grow(self) -> None:
        """Look at the cluster from time to time: actors for what has joined, and in place of what has died."""
        if time.monotonic() - self.looked < LOOK_S:
            return
        self.looked = time.monotonic()
        if not self._head_answers():
            return
        gpus, count, self.at_once, self.room = placement(self.options, self.ray.cluster_resources())
        kind = self.ray.remote(
            num_cpus=actor_cpus(gpus),
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=self.at_once,
            scheduling_strategy="SPREAD",
        )(Perception)
        for _ in range(count - len(self.actors) - len(self.starting)):
            actor = kind.remote(self.shared)
            self.starting[actor.setup.remote()] = actor

    def _head_answers(self) -> bool:
        """ClusterLost when the head has been silent for LOST_S, or this machine is no part of the cluster any more."""
        try:
            socket.create_connection(self.head, timeout=2).close()
        except OSError as error:
            silent = time.monotonic() - self.heard
            if silent > LOST_S:
                raise ClusterLost(
                    f"the head {self.head[0]}:{self.head[1]} has not answered for {silent:.0f} s ({error}); "
                    "nothing that is spooled or committed is lost: start the same command again on a cluster that lives"
                ) from None
            return False
        self.heard = time.monotonic()
        here = self.ray.get_runtime_context().get_node_id()
        if not any(node["Alive"] for node in self.ray.nodes() if node["NodeID"] == here):
            raise ClusterLost("the cluster has given up this machine's node; start the same command again")
        return True

    def _set_up(self, reference: Any) -> None:
        actor = self.starting.pop(reference)
        try:
            self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            self.ray.kill(actor)
            self.looked = -LOOK_S  # at once another
            self.setup_failures += 1
            if self.setup_failures >= max(1, self.options.runner.ray.setup_attempts):
                raise SetupError(f"the perception actor does not start: {error}") from None
            return
        self.setup_failures = 0
        self.actors[self.started] = actor
        self.idle.extend([self.started] * self.at_once)
        self.started += 1

    def _alive(self, i: int) -> bool:
        try:
            self.ray.get(self.actors[i].ping.remote(), timeout=PING_S)
            return True
        except self.ray.exceptions.RayError:
            return False


def placement(options: UnrollOptions, resources: dict[str, float]) -> tuple[float, int, int, int]:
    """(GPUs of one actor, number of actors, clips that each perceives at once, clips that may be in flight at once) on
    a cluster of these resources. An actor whose models are split has no GPU itself; they have theirs."""
    wanted, cpus, split = options.runner.ray, int(resources.get("CPU", 1)), is_split(options.perception)
    gpus = wanted.gpus if wanted.gpus >= 0 else float("foundation" in used(options.perception))
    need = share_of_all(options.perception) if split and gpus else gpus
    if not resources.get("GPU", 0) and wanted.gpus < 0:
        need = 0.0
    most = int(resources.get("GPU", 0) / need + 1e-6) if need else cpus // 2
    actors = wanted.actors or max(1, most)
    at_once = wanted.at_once or (2 if need else 1)
    in_flight = wanted.in_flight * actors or at_once * actors + max(actors, cpus - (0 if need else actors))
    height, width = options.render.size
    clip = BYTES_PER_PIXEL * options.clip.frames * height * width
    budget = wanted.budget_gb * 2**30 or STORE_SHARE * resources.get("object_store_memory", float("inf"))
    return 0.0 if split else need, actors, at_once, int(max(1, min(in_flight, budget // clip)))


def _with_queue(stages: dict[str, Use], elapsed: float) -> dict[str, Use]:
    """The stages of a step that took `elapsed` seconds from order to answer: the first one had to wait."""
    waited = max(0.0, elapsed - sum(use.seconds for use in stages.values()))
    return {name: replace(use, queue=0.0 if i else waited) for i, (name, use) in enumerate(stages.items())}


class Perception:
    """The models of one worker, resident."""

    def __init__(self, options: UnrollOptions) -> None:
        self.options = options

    def setup(self) -> None:
        """Load the models: apart from the constructor, so that a failure comes back as an error."""
        self.models = split_models(self.options) if is_split(self.options.perception) else load_models(self.options)

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
    def action(watch: Meter) -> int:
        members = finish(clip, perceived, options, config, watch)
        with watch("spool"):
            return settle(spool, unit, members, None, 1)

    pin(options.threads)
    return step("scene", action)
