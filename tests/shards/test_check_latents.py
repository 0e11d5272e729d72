"""Latent shards are verified as such: what the trainer packs passes, what is damaged is named."""

import json

import pytest
import torch
from shard_samples import members, unit

from shards import codec
from shards.__main__ import main
from shards.check_latents import MEMBER, check_latents
from shards.run import Run
from trainer.latents import LatentClip, pack, unpack


def latent_sample(key: str) -> dict[str, bytes]:
    meta = codec.decode("meta.json", members(key, 1)["meta.json"])
    meta["latents"] = {"fps": 16.0, "encoders": {"video": "tiny"}, "caption": "", "reference_frames": [0]}
    names = ("anchor_rgb", "anchor_depth", "holistic_rgb", "holistic_depth")
    sizes = {"target": (16, 3, 4, 6), "references": (1, 16, 4, 6), "text": (7, 32), "empty": (1, 32)}
    arrays = {name: torch.ones(size, dtype=torch.float16) for name, size in sizes.items()}
    conditions = {name: arrays["target"] + i for i, name in enumerate(names)}
    return pack(LatentClip(**arrays, conditions=conditions, meta=meta))


def again(fields: dict) -> dict[str, bytes]:
    return pack(LatentClip(**fields))


def test_what_the_trainer_packs_is_right():
    sample = latent_sample(unit(1).key)
    assert check_latents(sample, unit(1).key) == []
    clip = unpack(sample)
    request = pack(LatentClip(None, clip.conditions, clip.references[:0], clip.text, clip.empty, clip.meta))
    assert check_latents(request, unit(1).key) == []  # an inference request without references


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s, c: s | {MEMBER: s[MEMBER][:-2]}, "the arrays end at byte"),
        (lambda s, c: s | {MEMBER: b"\xff" * 20}, "are no safetensors file"),
        (lambda s, c: {MEMBER: s[MEMBER]}, "meta.json: missing"),
        (lambda s, c: s | {"meta.json": b"null"}, "meta.json: expected an object, found NoneType"),
        (lambda s, c: s | {"extra.txt": b""}, "extra.txt: unknown member"),
        (lambda s, c: again(c | {"text": c["text"].float()}), "text is F32, expected F16"),
        (lambda s, c: again(c | {"references": c["references"][:, :8]}), "references has shape"),
        (lambda s, c: again(c | {"conditions": {"anchor_rgb": c["target"] + 1}}), "anchor_depth is missing"),
        (lambda s, c: again(c | {"meta": c["meta"] | {"latents": {}}}), "latents.encoders is missing"),
        (lambda s, c: again(c | {"meta": c["meta"] | {"key": unit(2).key}}), "filed under"),
    ],
)
def test_what_is_wrong_is_named(spoil, message):
    sample = latent_sample(unit(1).key)
    found = check_latents(spoil(sample, vars(unpack(sample))), unit(1).key)
    assert any(message in text for text in found), found


def test_verify_knows_latent_shards_by_themselves(tmp_path, capsys):
    with Run.open(str(tmp_path), name="latents", config={}) as run:
        run.extend(unit(i) for i in range(2))
        for todo in run.todo():
            run.spool.put(todo, latent_sample(todo.key))
        run.finish()
    assert main(["verify", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 2
