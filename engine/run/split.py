"""Foundation perception as one Ray actor per model instead of one for all: `perception.foundation.split=true`.

The actor of the runner stays the one that takes clips; it holds no network and asks the actors that it made, each with
`perception.foundation.share` of a GPU. They end with it.
"""

import os
from dataclasses import dataclass
from typing import Any

from engine.config import UnrollOptions
from engine.perception import Models
from engine.perception.foundation import FoundationActor, FoundationOptions, actor_plan
from engine.perception.registry import BUNDLES, PerceptionOptions, build, parts
from engine.run.options import actor_cpus
from engine.run.threads import pin
from engine.types import Clip, DepthEstimate, GeometryEstimate, Tracks


def is_split(options: PerceptionOptions) -> bool:
    """Whether this configuration runs foundation models in actors of their own. ValueError when it cannot."""
    if options.foundation.split and options.precomputed.fill == "foundation":
        raise ValueError("perception.foundation.split=true: not for models that fill in for precomputed files")
    return options.foundation.split and "foundation" in parts(options).values()


def share_of_all(options: PerceptionOptions) -> float:
    """GPUs that the models of one of the runner's actors take together when they are split."""
    return options.foundation.share * sum(name == "foundation" for name in parts(options).values())


def split_models(options: UnrollOptions) -> Models:
    """The models of one worker, those of foundation perception behind actors of their own."""

    def foundation(perception: PerceptionOptions, wanted: tuple[str, ...]) -> Models:
        behind = {spec.name: spec for spec in actor_plan(perception.foundation) if spec.name in wanted}
        asked = {n: _Asked(_start(perception.foundation, s.parts, s.gpus, options.threads)) for n, s in behind.items()}
        for part in asked.values():
            part.ready()
        return Models(*(asked.get(part) for part in ("tracker", "geometry", "depth")))  # type: ignore[arg-type]

    return build(options.perception, {**BUNDLES, "foundation": foundation})


class _Part:
    """The networks of one part, in a process of their own."""

    def __init__(self, options: FoundationOptions, parts: tuple[str, ...], threads: int) -> None:
        pin(threads)
        self.actor, self.threads = FoundationActor(options, parts), threads

    def setup(self) -> None:
        self.actor.setup()
        pin(self.threads)

    def answer(self, question: str, *given: Any) -> Any:
        return getattr(self.actor, question)(*given)


@dataclass(frozen=True)
class _Asked:
    """One part as a Tracker, Geometry or Depth. An error there comes back as the error it was."""

    actor: Any

    def ready(self) -> None:
        self._wait(self.actor.setup.remote())

    def track(self, clip: Clip) -> Tracks:
        return self._wait(self.actor.answer.remote("track", clip))

    def geometry(self, clip: Clip, tracks: Tracks) -> GeometryEstimate:
        return self._wait(self.actor.answer.remote("geometry", clip, None))  # MoGe-2 reads no tracks

    def depth(self, clip: Clip, tracks: Tracks, geometry: GeometryEstimate) -> DepthEstimate:
        return self._wait(self.actor.answer.remote("depth", clip, None, None))  # nor does Depth Anything

    def _wait(self, reference: Any) -> Any:
        import ray

        try:
            return ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise error.cause or error from None
        except ray.exceptions.RayError:
            os._exit(1)  # a model's process is gone, and with it this worker's use: as if the fused one had died


def _start(options: FoundationOptions, parts: tuple[str, ...], gpus: float, threads: int) -> Any:
    import ray

    kind = ray.remote(num_cpus=actor_cpus(gpus), num_gpus=gpus, max_restarts=0, max_task_retries=0)(_Part)
    return kind.remote(options, parts, threads)
