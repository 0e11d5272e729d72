"""Encode sample shards into latent shards, once, on any number of processes; resumable.

    python -m trainer.encode shards=out/ latents=latents/ model=phantom_wan_14b
    torchrun --nproc-per-node 8 -m trainer.encode ...     one encoder per GPU

Latent shards follow the commit protocol of `shards` and keep the keys, pairs and meta.json of their samples.
"""

import json
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache

import torch
import torch.distributed as dist
from tqdm import tqdm

from shards.config import ConfigError
from shards.dataset import BadSample, Dataset, open_dataset
from shards.run import Run, RunStatus, ShardLimits, Spool, Unit
from shards.writer import sha256
from trainer.config import EncodeOptions, ModelOptions
from trainer.data import DataOptions, Read
from trainer.latents import LATENTS, ClipOptions, LatentClip, encode_clip, pack, unpack
from trainer.launch import command, device_of_this_rank, distributed
from trainer.model.encoders import EncoderOptions, Encoders, identity, load_encoders

ENCODING_S = 14 * 86400.0  # a rank may wait this long for the others' clips and for the commit: the work itself
SHARD = ShardLimits(samples=64, bytes=1 << 31)  # about 64 clips of 81 x 480 x 832 are 1.4 GB


class ReadLatents:
    """Clips from latent shards. BadSample when one is damaged."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __call__(self, key: str) -> LatentClip:
        members = self.dataset.members(key)
        try:
            return unpack(members)
        except Exception as error:
            raise BadSample(f"latent sample {key} does not decode: {error}") from error


class EncodeOnline:
    """Clips from sample shards, encoded when drawn. The last few stay in memory; encoders load on first use."""

    def __init__(self, dataset: Dataset, encoders: EncoderOptions, clip: ClipOptions, device: torch.device):
        self.arguments = (dataset, encoders, clip, device)
        self.encoders: Encoders | None = None
        self.cached = lru_cache(maxsize=8)(self._encode)

    def __reduce__(self) -> tuple[Callable, tuple]:
        return EncodeOnline, self.arguments

    def __call__(self, key: str) -> LatentClip:
        return self.cached(key)

    def _encode(self, key: str) -> LatentClip:
        dataset, options, clip, device = self.arguments
        self.encoders = self.encoders or load_encoders(options, device)
        try:
            return encode_clip(dataset.members(key), self.encoders, clip)
        except ValueError as error:
            raise BadSample(f"sample {key}: {error}") from error


def open_clips(
    shards: str, latents: str, model: ModelOptions, data: DataOptions, device: torch.device
) -> tuple[Read, Dataset]:
    """How to read clips, and the data set they are listed in. Collective when shards have to be encoded ahead."""
    dataset = open_dataset(shards)
    if not len(dataset):
        raise ValueError(f"{shards} holds no committed sample; make some with `make shards`")
    if LATENTS in dataset.entries(dataset.order[0]):
        _refuse_other_encoding(dataset, model.encoders, data.clip)
        return ReadLatents(dataset), dataset
    if data.encode == "online":
        return EncodeOnline(dataset, model.encoders, data.clip, device), dataset
    encode_shards(dataset, latents, model.encoders, data.clip, device)
    dataset = open_dataset(latents)
    if not len(dataset):
        raise ValueError(f"no sample of {shards} could be encoded; the reasons are in {latents}/_fail")
    return ReadLatents(dataset), dataset


def encoding(encoders: EncoderOptions, clip: ClipOptions) -> dict[str, dict]:
    """What decides the bytes of latent shards, for their `_run.json`."""
    return {"model.encoders": identity(encoders), "data.clip": asdict(clip)}


def _refuse_other_encoding(dataset: Dataset, encoders: EncoderOptions, clip: ClipOptions) -> None:
    """ConfigError when latent shards were encoded with other options than this run has."""
    if not dataset.store.exists("_run.json"):
        return
    theirs = json.loads(dataset.store.read("_run.json"))["config"]
    differing = [
        f"{part}.{name}={theirs.get(part, {}).get(name)} (here {value})"
        for part, options in encoding(encoders, clip).items()
        for name, value in options.items()
        if theirs.get(part, {}).get(name) != value
    ]
    if differing:
        raise ConfigError(
            f"{dataset.store.url} was encoded with {', '.join(differing)}: say the same here, or encode again into "
            "another folder"
        )


def encode_shards(
    dataset: Dataset, latents: str, encoders: EncoderOptions, clip: ClipOptions, device: torch.device
) -> RunStatus | None:
    """Encode what is not yet encoded, shared among all ranks; rank 0 plans and commits and returns the counts.

    A sample that cannot be encoded is quarantined with its traceback and does not stop the others.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    run, share = None, [None]
    if rank == 0:
        config = encoding(encoders, clip)
        run = Run.open(latents, name="latents", config=config, limits=SHARD)
        run.extend(_units(dataset, config))
        share = [list(run.todo())]
    try:
        dist.broadcast_object_list(share)
        mine, spool = share[0][rank::world], Spool.at(latents)
        loaded = load_encoders(encoders, device) if mine else None
        for unit in tqdm(mine, desc="encode", unit="clip", disable=rank > 0 or not mine):
            _encode_unit(unit, dataset, loaded, clip, spool)
            if run:
                run.lease.check()
                run.commit_ready()  # not all of it at the end, while every other rank waits
        dist.barrier()
        if run is None:
            return None
        status = run.finish()
        if status.quarantined:
            print(f"{status.quarantined} samples could not be encoded; reasons in {latents}/_fail", file=sys.stderr)
        return status
    finally:
        if run:
            run.close()
        dist.barrier()


def _encode_unit(unit: Unit, dataset: Dataset, encoders: Encoders, clip: ClipOptions, spool: Spool) -> None:
    try:
        spool.put(unit, pack(encode_clip(dataset.members(unit.key), encoders, clip)))
    except (ValueError, KeyError) as error:
        spool.quarantine(
            unit,
            stage="encode",
            reason="bad_sample" if isinstance(error, BadSample) else "unfit_sample",
            message=str(error),
            traceback=traceback.format_exc(),
            attempts=1,
        )


def _units(dataset: Dataset, config: dict) -> list[Unit]:
    rows = (dataset.row(key) for key in dataset)
    return [
        Unit(
            unit=sha256(f"{config} {row['unit']} {row['key']}".encode()),
            key=row["key"],
            uri=row["uri"],
            start_s=row["start_s"],
            end_s=row["end_s"],
        )
        for row in rows
    ]


def encode(options: EncodeOptions) -> None:
    """The verb: every sample of the shards that is not yet encoded."""
    device = device_of_this_rank()
    with distributed(ENCODING_S):
        status = encode_shards(
            open_dataset(options.shards), options.latents, options.model.encoders, options.data.clip, device
        )
    if status:
        print(
            f"{options.latents}: {status.committed} clips in {status.shards} shards, {status.quarantined} quarantined"
        )


if __name__ == "__main__":
    sys.exit(command("encode", __doc__, encode))
