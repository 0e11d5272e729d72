"""Encode sample shards into latent shards, once, on any number of processes; resumable.

    python -m trainer.encode shards=out/ latents=latents/ model=phantom_wan_14b
    torchrun --nproc-per-node 8 -m trainer.encode ...     one encoder per GPU
"""

import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from shards import codec
from trainer.latents import ClipOptions, LatentClip, encode_clip, unpack
from trainer.model.encoders import EncoderOptions, load_encoders


@dataclass(frozen=True)
class ShardSet:
    """Samples by key: `pairs` says which keys show one world, `members(key)` reads a sample."""

    root: str
    where: dict[str, dict[str, tuple[str, int, int]]]
    pairs: dict[str, tuple[str, str] | None]
    latent: bool

    def members(self, key: str) -> dict[str, bytes]:
        out = {}
        for name, (tar, offset, size) in self.where[key].items():
            with open(tar, "rb") as file:
                file.seek(offset)
                out[name] = file.read(size)
        return out


def open_shards(root: str) -> ShardSet:
    where, pairs, latent = {}, {}, False
    for tar in sorted(Path(root).glob("*.tar")):
        with tarfile.open(tar) as archive:
            for info in archive:
                key, _, name = info.name.partition(".")
                where.setdefault(key, {})[name] = (str(tar), info.offset_data, info.size)
    shards = ShardSet(root, where, pairs, latent)
    for key in where:
        with open(where[key]["meta.json"][0], "rb") as file:
            file.seek(where[key]["meta.json"][1])
            meta = codec.decode("meta.json", file.read(where[key]["meta.json"][2]))
        pair = meta["pair"]
        pairs[key] = (pair["id"], pair["view"]) if pair else None
    return shards


class ReadLatents:
    """key -> LatentClip from latent shards."""

    def __init__(self, shards: ShardSet):
        self.shards = shards

    def __call__(self, key: str) -> LatentClip:
        return unpack(self.shards.members(key))


class EncodeOnline:
    """key -> LatentClip from sample shards, encoded on the spot. The last few clips stay in memory."""

    def __init__(self, shards: ShardSet, encoders: EncoderOptions, clip: ClipOptions, device: str = "cpu"):
        self.shards, self.options, self.clip, self.device = shards, encoders, clip, device
        self._encoders = None
        self._cached = lru_cache(maxsize=8)(self._encode)

    def __reduce__(self) -> tuple[Callable, tuple]:
        return EncodeOnline, (self.shards, self.options, self.clip, self.device)

    def __call__(self, key: str) -> LatentClip:
        return self._cached(key)

    def _encode(self, key: str) -> LatentClip:
        import torch

        if self._encoders is None:
            self._encoders = load_encoders(self.options, torch.device(self.device))
        return encode_clip(self.shards.members(key), self._encoders, self.clip)


def open_clips(root, latents, model, data, device):
    shards = open_shards(root)
    return EncodeOnline(shards, model.encoders, data.clip, "cpu"), shards.pairs
