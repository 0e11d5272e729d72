"""From latent shards to batches.

Sample number g (0, 1, 2, ... over all epochs) decides everything that is random about a training sample: which unit,
which branches, which dropouts, sigma and noise all follow from (seed, g). So the loader's whole state is the number
of samples consumed, it is free of placement, and another world size continues the same sequence.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shards.dataset import Dataset
from shards.options import option
from shards.reader import SampleStream
from trainer.flow import FlowOptions, sample_sigma
from trainer.latents import ClipOptions, LatentClip
from trainer.model.parallelize import Grid


@dataclass
class DataOptions:
    clip: ClipOptions = option(ClipOptions(), "window, size and depth range of a training clip")
    encode: str = option(
        "ahead",
        "ahead: encode the shards once into latent shards, then train on those; online: encode each sample when it is "
        "drawn (no disk, but the encoders stay in memory)",
        choices=("ahead", "online"),
    )
    branches: int = option(1, "views of one world per sample: 1 in stage 1, 2 in stage 2 (the paper's pairs)")
    references: int = option(4, "reference slots of the token axis; absent ones are zero latents. Phantom: at most 4")
    anchor_ratio: float = option(
        0.5, "share of samples conditioned on the anchor background, the rest on the holistic one; the paper gives none"
    )
    use_depth: bool = option(
        True, "feed the depth condition; False is the paper's ablation without depth (zero latents)"
    )
    drop_text: float = option(0.1, "share of samples with the empty text; as classifier-free guidance needs it")
    drop_identity: float = option(0.05, "share of samples with zero latents in place of the references")
    drop_both: float = option(0.1, "share of samples with both dropped: the negative pass of Phantom's guidance")
    drop_geometry: float = option(0.0, "share of samples without geometry; 0 because it stays in the negative pass")
    exclude_reference_frame: bool = option(
        False, "leave the latent frame a reference was cut from out of the loss, so that copying it earns nothing"
    )
    text_length: int = option(512, "tokens the text is zero-padded to; Wan2.1: 512")
    held_out: float = option(
        0.02, "share of units kept for the held-out loss, at least one where there are two or more"
    )
    workers: int = option(4, "loader processes per rank; 0 loads in the training process")
    prefetch: int = option(2, "batches each loader process prepares ahead")
    verdicts: list[str] = option(
        ["kept", "flagged"], "quality verdicts of the engine that are trained on: kept, flagged, rejected"
    )
    bad_samples: str = option(
        "strict", "strict: a damaged sample stops the training; skip: another takes its place", ("strict", "skip")
    )
    bad_cap: int = option(10, "damaged samples skipped per loader process before it stops all the same")
    seed: int = option(0, "of the order, the dropouts, sigma and noise")


Read = Callable[[str], LatentClip]
Unit = tuple[str, ...]  # keys of the views of one world, by view name; a single key without pairs


class DataError(ValueError):
    """The shards cannot serve this training."""


def chosen_pairs(dataset: Dataset, options: DataOptions) -> dict[str, tuple[str, str] | None]:
    """key -> (pair id, view) or None, of the samples whose verdict is asked for. DataError when there are none."""
    verdicts = dict(zip(dataset.order, dataset.table["verdict"].to_pylist(), strict=True))
    chosen = {key: pair for key, pair in dataset.pairs.items() if verdicts[key] in options.verdicts}
    if not chosen:
        found = ", ".join(f"{n} {verdict}" for verdict, n in sorted(Counter(verdicts.values()).items()))
        raise DataError(
            f"no sample has a verdict of data.verdicts={options.verdicts}; there are {found}. Look at them with "
            "`make contact-sheet`, then name the verdicts to train on"
        )
    return chosen


def split_units(
    pairs: dict[str, tuple[str, str] | None], branches: int, held_out: float
) -> tuple[list[Unit], list[Unit]]:
    """(training, held-out) units from key -> (pair id, view) or None. The split follows the hash of the unit's name.

    With one branch every sample is a unit of its own, but the views of a world fall on the same side.
    """
    worlds: dict[str, list[tuple[str, str]]] = {}
    for key, pair in sorted(pairs.items()):
        worlds.setdefault(pair[0] if pair else key, []).append((pair[1] if pair else "", key))
    chosen = {name: views for name, views in worlds.items() if len(views) >= branches}
    if not chosen:
        raise DataError(
            f"{len(pairs)} samples hold no world seen by {branches} views; stage 2 needs paired samples "
            "(meta.json `pair`), stage 1 needs at least one sample"
        )
    ranked = sorted(chosen, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    count = min(max(round(held_out * len(ranked)), 1), len(ranked) - 1) if held_out > 0 else 0

    def units(names: list[str]) -> list[Unit]:
        views = (sorted(chosen[name]) for name in sorted(names))
        if branches > 1:
            return [tuple(key for _, key in view) for view in views]
        return [(key,) for view in views for _, key in view]

    return units(ranked[count:]), units(ranked[:count])


@dataclass(frozen=True)
class TrainingSample:
    """One sample of N branches, float32 unless said: the arguments of `WorldGenerator` and of the loss.

    clean, noise [N,C,T,h,w]; sigma [N], equal; geometry [N,2C,T,h,w]; references [N,C,R,h,w]; text [N,L,D];
    weight [N,T] of each latent frame in the loss; keys of the branches
    """

    clean: Tensor
    noise: Tensor
    sigma: Tensor
    geometry: Tensor
    references: Tensor
    text: Tensor
    weight: Tensor
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Batch(TrainingSample):
    """Samples stacked on the branch axis: (B N) first. keys has B N entries."""

    def to(self, device: torch.device) -> "Batch":
        fields = {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return Batch(**fields)


def stack(samples: list[TrainingSample]) -> Batch:
    tensors = {k: torch.cat([getattr(s, k) for s in samples]) for k in vars(samples[0]) if k != "keys"}
    return Batch(**tensors, keys=tuple(key for s in samples for key in s.keys))


class TrainingStream(SampleStream):
    """The training samples of one data rank. Item number g is a `TrainingSample` that follows from (seed, g) alone.

    `branch` restricts it to one branch (branch parallelism), with exactly the draws of the whole sample.
    """

    def __init__(
        self,
        dataset: Dataset,
        units: list[Unit],
        read: Read,
        options: DataOptions,
        flow: FlowOptions,
        grid: Grid,
        batch: int,
    ):
        bad = {"bad": options.bad_samples, "bad_cap": options.bad_cap}
        super().__init__(dataset, seed=options.seed, batch=batch, rank=grid.data, world=grid.data_size, **bad)
        self.items, self.read_clip, self.options, self.flow, self.branch = units, read, options, flow, grid.branch
        self._number = 0

    def read(self, number: int) -> TrainingSample:
        self._number = number
        return super().read(number)

    def _make(self, keys: tuple[str, ...]) -> TrainingSample:
        options, rng = self.options, np.random.default_rng([self.options.seed, 2, self._number])
        views = rng.permutation(keys)[: options.branches]
        sigma = float(sample_sigma(torch.tensor(rng.standard_normal()), self.flow))
        kind = "anchor" if rng.random() < options.anchor_ratio else "holistic"
        dropped = draw_dropout(rng.random(), rng.random(), options)
        branches = range(len(views)) if self.branch is None else [self.branch]
        seed = (options.seed, 3, self._number)
        return stack(
            [assemble(self.read_clip(str(views[b])), kind, dropped, sigma, (*seed, b), options) for b in branches]
        )


class HeldOutSet:
    """Every held-out unit at every sigma, noise fixed by (unit, sigma): nothing dropped, conditions in turn."""

    def __init__(
        self, units: list[Unit], read: Read, options: DataOptions, sigmas: list[float], branch: int | None = None
    ):
        self.units, self.read, self.options, self.sigmas, self.branch = units, read, options, sigmas, branch

    def __len__(self) -> int:
        return len(self.units) * len(self.sigmas)

    def __getitem__(self, number: int) -> TrainingSample:
        unit, index = divmod(number, len(self.sigmas))
        ratio = self.options.anchor_ratio
        kind = "anchor" if ratio == 1 or (ratio > 0 and unit % 2 == 0) else "holistic"
        views = self.units[unit][: self.options.branches]
        branches = range(len(views)) if self.branch is None else [self.branch]
        parts = [
            assemble(self.read(views[b]), kind, frozenset(), self.sigmas[index], (4, number, b), self.options)
            for b in branches
        ]
        return stack(parts)


def draw_dropout(first: float, second: float, options: DataOptions) -> frozenset[str]:
    """The parts dropped, from two uniform draws; shared by all branches of a sample."""
    out = set()
    if first < options.drop_both:
        out |= {"text", "identity"}
    elif first < options.drop_both + options.drop_text:
        out.add("text")
    elif first < options.drop_both + options.drop_text + options.drop_identity:
        out.add("identity")
    if second < options.drop_geometry:
        out.add("geometry")
    return frozenset(out)


def assemble(
    clip: LatentClip, kind: str, dropped: frozenset[str], sigma: float, seed: tuple[int, ...], options: DataOptions
) -> TrainingSample:
    """One branch as the generator's arguments. A dropped part is a zero latent (text: the empty text's embedding)."""
    if clip.target is None:
        raise DataError(f"{clip.key} has no target.mp4: it is an inference request, not a training sample")
    clean = clip.target.float()
    return TrainingSample(
        clean=clean[None],
        noise=seeded_noise(clean.shape, seed)[None],
        sigma=torch.tensor([sigma], dtype=torch.float32),
        geometry=geometry_latents(clip, kind, options, "geometry" in dropped)[None],
        references=reference_latents(clip, options.references, "identity" in dropped)[None],
        text=text_embedding(clip, options.text_length, "text" in dropped)[None],
        weight=_loss_weight(clip, options, "identity" in dropped)[None],
        keys=(clip.key,),
    )


def seeded_noise(shape: tuple[int, ...], seed: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(shape), dtype=np.float32))


def geometry_latents(clip: LatentClip, kind: str, options: DataOptions, dropped: bool = False) -> Tensor:
    """[2C,T,h,w]: RGB, then depth, of the anchor or the holistic condition."""
    rgb, depth = clip.conditions[f"{kind}_rgb"].float(), clip.conditions[f"{kind}_depth"].float()
    stacked = torch.cat([rgb, depth if options.use_depth else torch.zeros_like(depth)])
    return torch.zeros_like(stacked) if dropped else stacked


def reference_latents(clip: LatentClip, slots: int, dropped: bool = False) -> Tensor:
    """[C,slots,h,w]; empty slots and dropped references are zero latents."""
    references = clip.references[:slots].float()
    out = torch.zeros(slots, *references.shape[1:])
    if not dropped:
        out[: len(references)] = references
    return out.transpose(0, 1)


def text_embedding(clip: LatentClip, length: int, dropped: bool = False) -> Tensor:
    """[length, dim], zero-padded and attended to unmasked, as Wan does."""
    text = (clip.empty if dropped else clip.text)[:length].float()
    return torch.nn.functional.pad(text, (0, 0, 0, length - len(text)))


def _loss_weight(clip: LatentClip, options: DataOptions, identity_dropped: bool) -> Tensor:
    weight = torch.ones(clip.target.shape[1])
    if options.exclude_reference_frame and not identity_dropped:
        own = [f for f in clip.meta["latents"]["reference_frames"][: options.references] if f >= 0]
        weight[own] = 0
        if not weight.any():
            raise DataError(f"{clip.key}: its references were cut from every latent frame; nothing is left to train on")
    return weight
