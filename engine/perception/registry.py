"""Perception by name: which adapter answers which question, and how it is made.

A bundle is a name with a function from its options to `Models`. To add one: write the adapter, put its options into
`PerceptionOptions` and one line into `BUNDLES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from engine.options import option
from engine.perception import Models
from engine.perception.embedded import EmbeddedGeometryOptions, EmbeddedTrackerOptions
from engine.perception.foundation import FoundationOptions
from engine.perception.oracle import OracleOptions
from engine.perception.precomputed import PrecomputedOptions

NAMES = ("embedded", "foundation", "precomputed", "oracle")


@dataclass
class EmbeddedOptions:
    tracker: EmbeddedTrackerOptions = option(EmbeddedTrackerOptions(), "people")
    geometry: EmbeddedGeometryOptions = option(EmbeddedGeometryOptions(), "depth and scale")


@dataclass
class PerceptionOptions:
    tracker: str = option("embedded", "who finds and follows the subjects", NAMES)
    geometry: str = option("embedded", "who gives intrinsics and metric depth", NAMES)
    depth: str = option(
        "geometry",
        "who gives smooth depth: geometry = the bundle named there, when it has a depth model; none = geometry's depth",
        ("geometry", "none", *NAMES),
    )
    embedded: EmbeddedOptions = option(EmbeddedOptions(), "networks that come inside wheels, on the CPU")
    foundation: FoundationOptions = option(FoundationOptions(), "MoGe-2, SAM 2, Depth Anything and a detector")
    precomputed: PrecomputedOptions = option(PrecomputedOptions(), "files beside the video")
    oracle: OracleOptions = option(OracleOptions(), "the truth of synthetic worlds, with imitated errors")


def parts(options: PerceptionOptions) -> dict[str, str]:
    """part -> bundle: "tracker", "geometry" and, unless it is none, "depth"."""
    chosen = {"tracker": options.tracker, "geometry": options.geometry}
    if options.depth != "none":
        chosen["depth"] = options.geometry if options.depth == "geometry" else options.depth
    return chosen


def used(options: PerceptionOptions) -> set[str]:
    """Names of the bundles that this configuration builds, a precomputed bundle's filler included."""
    names = set(parts(options).values())
    if "precomputed" in names and options.precomputed.fill:
        names.add(options.precomputed.fill)
    return names


def build(options: PerceptionOptions, bundles: "dict[str, Bundle] | None" = None) -> Models:
    """Load the models of one worker. What is missing (weights, packages) is an error that says what to do.

    `bundles` is another way to make them than `BUNDLES`."""
    chosen = parts(options)
    made: dict[str, Models] = {}
    for name in dict.fromkeys(chosen.values()):
        made[name] = _bundle(name, options, tuple(p for p in chosen if chosen[p] == name), bundles)
    depth = made[chosen["depth"]].depth if "depth" in chosen else None
    return Models(made[chosen["tracker"]].tracker, made[chosen["geometry"]].geometry, depth)


def identify(options: PerceptionOptions) -> dict[str, Any]:
    """What tells these models from others without loading them; part of a run's fingerprint.

    Raises WeightsError when foundation weights are missing: before any work, with the list and the command.
    """
    found: dict[str, Any] = {}
    names = used(options)
    if "embedded" in names:
        # both are exactly pinned; the networks' own hashes go into every sample's meta.json
        found["embedded"] = {name: metadata.version(name) for name in ("mediapipe", "ai-edge-litert")}
    if "foundation" in names:
        from engine.perception.foundation import weight_names
        from engine.perception.weights import provenance, require

        wanted = [p for p, name in parts(options).items() if name == "foundation"] or list(parts(options))
        weights = weight_names(options.foundation, wanted)
        require(options.foundation.weights, weights)
        found["foundation"] = {name: provenance(options.foundation.weights, name) for name in weights}
    return found


def _bundle(
    name: str, options: PerceptionOptions, wanted: tuple[str, ...], bundles: "dict[str, Bundle] | None" = None
) -> Models:
    if name not in BUNDLES:
        raise ValueError(f"no perception is called {name!r}; known are {', '.join(BUNDLES)}")
    return (bundles or BUNDLES)[name](options, wanted)


def _embedded(options: PerceptionOptions, wanted: tuple[str, ...]) -> Models:
    from engine.perception.embedded import EmbeddedGeometry, EmbeddedTracker

    return Models(EmbeddedTracker(options.embedded.tracker), EmbeddedGeometry(options.embedded.geometry))


def _foundation(options: PerceptionOptions, wanted: tuple[str, ...]) -> Models:
    from engine.perception.foundation import FoundationActor

    actor = FoundationActor(options.foundation, wanted)
    actor.setup()
    return Models(*(actor.models.get(part) for part in ("tracker", "geometry", "depth")))


def _precomputed(options: PerceptionOptions, wanted: tuple[str, ...]) -> Models:
    from engine.perception.precomputed import precomputed

    fill = options.precomputed.fill
    if fill == "precomputed":
        raise ValueError("perception.precomputed.fill: precomputed cannot fill in for itself")
    return precomputed(options.precomputed, _bundle(fill, options, wanted) if fill else None)


def _oracle(options: PerceptionOptions, wanted: tuple[str, ...]) -> Models:
    from engine.perception.oracle import oracle

    return oracle(options.oracle)


Bundle = Callable[[PerceptionOptions, tuple[str, ...]], Models]
BUNDLES: dict[str, Bundle] = {
    "embedded": _embedded,
    "foundation": _foundation,
    "precomputed": _precomputed,
    "oracle": _oracle,
}
