"""The options of the runners."""

from dataclasses import dataclass

from engine.options import option

STEP_CPUS = 0.99  # that Ray reserves for a step: actors without a GPU fit beside it


def actor_cpus(gpus: float) -> float:
    """CPUs that Ray reserves for an actor. With a GPU none: that decides where it goes. Else a sliver, which fits on
    every node that has CPUs, busy ones too, and on no other: one that asks for nothing may land on a head without
    CPUs."""
    return 0.0 if gpus else 0.001


@dataclass
class RayOptions:
    address: str = option("local", "local = a new cluster on this machine; auto or an address = an existing one")
    cpus: int = option(0, "CPUs of a local cluster; 0 = those of the machine")
    actors: int = option(0, "perception actors; 0 = one per GPU, or without GPUs one per two CPUs")
    gpus: float = option(-1.0, "GPUs of one actor; -1 = one when the cluster has GPUs and perception uses them, else 0")
    at_once: int = option(
        0,
        "clips that one actor perceives at a time; 0 = two on a GPU (one computes there while the other is in steps of "
        "the CPU), else one",
    )
    in_flight: int = option(
        0, "clips per actor between decoding and spool; 0 = those in the models, and one for every CPU that is left"
    )
    budget_gb: float = option(
        0.0, "GiB of decoded clips, depth and masks in flight at once; 0 = 60 % of the cluster's object store"
    )
    store_gb: float = option(0.0, "object store of a local cluster in GiB; 0 = Ray's own choice, 30 % of RAM")
    dashboard: bool = option(False, "start the dashboard and print its address")
    setup_attempts: int = option(3, "an actor whose models do not load is started this many times")


@dataclass
class RunnerOptions:
    kind: str = option("local", "local = on this machine, a clip at a time; ray = on a Ray cluster", ("local", "ray"))
    isolate: bool = option(
        True,
        "the local runner works in a child process: a clip that crashes it is quarantined and the run goes on; "
        "false = in the process itself, for a debugger",
    )
    attempts: int = option(2, "times a clip is tried when code raises an error, before it is quarantined")
    surveys: int = option(0, "videos surveyed side by side while planning; 0 = one per CPU")
    ray: RayOptions = option(RayOptions(), "the Ray runner")
