"""From samples to batches: encoding, dropout, references, pairs, held-out units, an order that is free of placement."""

import dataclasses
from itertools import islice

import numpy as np
import pytest
import torch
import torch.distributed as dist
from trainer_ranks import options
from trainer_worlds import members, write_shards

from shards.config import ConfigError
from shards.dataset import BadSample, open_dataset
from shards.run import status
from trainer.data import DataError, TrainingStream, assemble, chosen_pairs, draw_dropout, split_units
from trainer.encode import EncodeOnline, encode_shards, open_clips
from trainer.latents import ClipOptions, depth_picture, encode_clip, latent_frame, letterbox, pack, unpack
from trainer.launch import distributed
from trainer.model.encoders import HashedText, load_encoders
from trainer.model.parallelize import Grid
from trainer.model.space_to_depth import SpaceToDepth

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def micro(tmp_path_factory):
    """(options, sample shards, latent reader, latent data set)."""
    folder = tmp_path_factory.mktemp("data")
    shards = write_shards(folder / "shards", 3, pairs=True, N=2)
    o = options(shards, folder / "out", "data.clip.references=2")
    with distributed():
        read, dataset = open_clips(o.shards, str(folder / "latents"), o.model, o.data, CPU)
    return o, shards, read, dataset


def stream(micro, grid=None, batch=1, **changes) -> TrainingStream:
    o, _, read, dataset = micro
    data = dataclasses.replace(o.data, **changes)
    units, _ = split_units(dataset.pairs, data.branches, 0)
    return TrainingStream(dataset, units, read, data, o.flow, grid or Grid(None), batch)


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_stand_in_for_the_vae_is_exact_and_keeps_the_time_axis(patch):
    video = torch.randn(2, 3, 9, 16, 24, generator=torch.Generator().manual_seed(0))
    vae = SpaceToDepth(patch)
    latents = vae.encode(video)
    assert latents.shape == (2, vae.channels, 3, 16 // patch, 24 // patch)
    assert torch.equal(vae.decode(latents), video)
    later = video.clone()
    later[:, :, 5:] += 1  # frames 5..8 are latent frame 2
    assert torch.equal(vae.encode(later)[:, :, :2], latents[:, :, :2])


def test_latent_clip_round_trip_and_online_equals_ahead(micro):
    o, shards, read, dataset = micro
    key = dataset.order[0]
    clip = read(key)
    online = EncodeOnline(open_dataset(shards), o.model.encoders, o.data.clip, CPU)(key)
    again = unpack(pack(clip))
    for other in (online, again):
        assert torch.equal(clip.target, other.target)
        assert torch.equal(clip.references, other.references)
        assert all(torch.equal(clip.conditions[name], other.conditions[name]) for name in clip.conditions)
        assert clip.meta == other.meta


def test_encoding_is_resumable_and_quarantines_what_does_not_fit(micro, tmp_path):
    o, shards, _, _ = micro
    long = dataclasses.replace(o.data.clip, frames=9)  # the samples have 5 frames
    with distributed():
        failed = encode_shards(open_dataset(shards), str(tmp_path / "a"), o.model.encoders, long, CPU)
        assert (failed.quarantined, failed.committed) == (6, 0)
        with pytest.raises(ValueError, match=r"no sample .* could be encoded"):
            open_clips(str(shards), str(tmp_path / "a"), o.model, dataclasses.replace(o.data, clip=long), CPU)
        first = encode_shards(open_dataset(shards), str(tmp_path / "b"), o.model.encoders, o.data.clip, CPU)
        tars = {p.name: p.read_bytes() for p in (tmp_path / "b").glob("*.tar")}
        second = encode_shards(open_dataset(shards), str(tmp_path / "b"), o.model.encoders, o.data.clip, CPU)
    assert first.committed == second.committed == 6
    assert {p.name: p.read_bytes() for p in (tmp_path / "b").glob("*.tar")} == tars
    assert status(str(tmp_path / "b")).todo == 0


def test_latents_of_other_options_are_refused(micro, tmp_path):
    """A training on latents says the clip and the encoders they were made with, or is told which."""
    o, shards, _, _ = micro
    with distributed():
        encode_shards(open_dataset(shards), str(tmp_path), o.model.encoders, o.data.clip, CPU)
        read, dataset = open_clips(str(tmp_path), "unused", o.model, o.data, CPU)
        assert read(dataset.order[0]).target is not None
        other = dataclasses.replace(o.data, clip=dataclasses.replace(o.data.clip, height=32, depth_far=50.0))
        with pytest.raises(
            ConfigError, match=r"data\.clip\.height=16 \(here 32\), data\.clip\.depth_far=100\.0 \(here 50"
        ):
            open_clips(str(tmp_path), "unused", o.model, other, CPU)
        model = dataclasses.replace(o.model, encoders=dataclasses.replace(o.model.encoders, patch=2))
        with pytest.raises(ConfigError, match=r"model\.encoders\.patch=4 \(here 2\).*encode again"):
            open_clips(str(tmp_path), "unused", model, o.data, CPU)


def test_inference_request_is_encoded_without_a_target_and_not_trained_on(micro):
    o = micro[0]
    sample = members("0" * 12 + "-0000", 0, T=5, H=16, W=32)
    del sample["target.mp4"]
    clip = encode_clip(sample, load_encoders(o.model.encoders, CPU), o.data.clip)
    assert clip.target is None
    assert unpack(pack(clip)).target is None
    with pytest.raises(DataError, match="inference request"):
        assemble(clip, "anchor", frozenset(), 0.5, (0,), o.data)


def test_depth_means_the_same_distance_in_every_clip():
    metres = np.array([[[0.0, 0.25, 5.0, 100.0, 500.0]]], np.float32)
    picture = depth_picture(metres, ClipOptions())[0, 0, :, 0]
    assert picture.tolist() == pytest.approx([-1, 1, 0, -1, -1], abs=1e-6)  # 5 m is the geometric middle


def test_letterbox_is_white_centred_and_keeps_the_aspect():
    rgba = np.zeros((20, 10, 4), np.uint8)
    rgba[..., 3] = 255
    picture = letterbox(rgba, ClipOptions(height=40, width=60))
    black = np.argwhere(picture.sum(-1) == 0)
    assert black.min(0).tolist() == [0, 20]
    assert black.max(0).tolist() == [39, 39]
    assert (picture[:, :20] == 255).all()
    rgba[..., 3] = 0
    assert (letterbox(rgba, ClipOptions(height=40, width=60)) == 255).all()


def test_latent_frame_of_a_sample_frame():
    options = ClipOptions(frames=9, stride=1)
    assert [latent_frame(f, options) for f in (0, 1, 4, 5, 8, 9)] == [0, 1, 1, 2, 2, -1]
    assert [latent_frame(f, ClipOptions(frames=9, stride=2)) for f in (0, 1, 2, 16)] == [0, -1, 1, 2]


def test_branches_share_sigma_and_dropout_and_have_their_own_noise(micro):
    sample = stream(micro).read(3)
    assert len(sample.keys) == 2
    assert sample.sigma[0] == sample.sigma[1]
    assert not torch.equal(sample.noise[0], sample.noise[1])
    assert sample.keys[0][:-1] == sample.keys[1][:-1]  # two views of one world
    for number in range(6):
        dropped = stream(micro, drop_both=1.0).read(number)
        assert not dropped.references.any()
        assert torch.equal(dropped.text[0], dropped.text[1])


def test_one_branch_of_a_sample_equals_that_branch_of_the_whole(micro):
    whole = stream(micro).read(5)
    for branch in (0, 1):
        part = stream(micro, grid=Grid(None, branch=branch)).read(5)
        assert part.keys == whole.keys[branch : branch + 1]
        for name in ("clean", "noise", "sigma", "geometry", "references", "text"):
            assert torch.equal(getattr(part, name)[0], getattr(whole, name)[branch]), name


def test_order_is_free_of_placement(micro):
    def step(world: int, batch: int, number: int) -> set:
        out = set()
        for rank in range(world):
            part = stream(micro, grid=Grid(None, data=rank, data_size=world), batch=batch)
            out |= {(n, part.keys(n)) for n in islice(part.numbers(), number * batch, (number + 1) * batch)}
        return out

    assert step(1, 4, 2) == step(2, 2, 2) == step(4, 1, 2)


def test_dropout_shares():
    o = options("none", "none").data
    rng = np.random.default_rng(0)
    o = dataclasses.replace(o, drop_both=0.1, drop_text=0.2, drop_identity=0.3, drop_geometry=0.4)
    drawn = [draw_dropout(a, b, o) for a, b in rng.random((20000, 2))]
    share = lambda *parts: np.mean([set(parts) <= d for d in drawn])  # noqa: E731
    assert share("text", "identity") == pytest.approx(0.1, abs=0.01)
    assert share("text") == pytest.approx(0.3, abs=0.01)
    assert share("identity") == pytest.approx(0.4, abs=0.01)
    assert share("geometry") == pytest.approx(0.4, abs=0.01)


def test_anchor_and_holistic_are_mixed_by_the_ratio_and_depth_can_be_left_out(micro):
    for ratio, kind in ((0.0, "holistic"), (1.0, "anchor")):
        sample = stream(micro, anchor_ratio=ratio).read(0)
        clip = micro[2](sample.keys[0])
        channels = clip.conditions[f"{kind}_rgb"].shape[0]
        assert torch.equal(sample.geometry[0, :channels], clip.conditions[f"{kind}_rgb"].float())
    assert not stream(micro, use_depth=False).read(0).geometry[:, channels:].any()


def test_the_frame_a_reference_was_cut_from_can_leave_the_loss(micro):
    # References of the two subjects were cut from frames 0 and 4: latent frames 0 and 1, all that a clip of 5 has.
    kept = {"drop_both": 0.0, "drop_identity": 0.0, "drop_text": 0.0}
    assert stream(micro, exclude_reference_frame=True, references=1, **kept).read(0).weight.tolist() == [[0, 1]] * 2
    assert stream(micro, exclude_reference_frame=False, references=1).read(0).weight.tolist() == [[1, 1]] * 2
    with pytest.raises(DataError, match="every latent frame"):
        stream(micro, exclude_reference_frame=True, references=2, **kept).read(0)


def test_split_keeps_the_views_of_a_world_together():
    pairs = {f"{i:012x}-0000-{v}": (f"w{i}", v) for i in range(50) for v in "ab"} | {"c" * 12 + "-0000": None}
    train, held = split_units(pairs, 1, 0.2)
    assert len(train) + len(held) == 101
    assert not {k[:12] for (k,) in train} & {k[:12] for (k,) in held}
    assert split_units(pairs, 1, 0.2) == (train, held)
    two, _ = split_units(pairs, 2, 0)
    assert len(two) == 50
    assert all(a.endswith("-a") and b.endswith("-b") for a, b in two)
    with pytest.raises(DataError, match="3 views"):
        split_units(pairs, 3, 0)


def test_hashed_words_are_fixed_and_order_matters():
    text = HashedText(8, 4)
    assert torch.equal(text.encode("a b"), text.encode("A  b"))
    assert not torch.equal(text.encode("a b"), text.encode("b a"))
    assert len(text.encode("one two three four five")) == 4
    assert len(text.encode("")) == 1
    assert not dist.is_initialized()


def test_samples_are_chosen_by_their_verdict(micro):
    o, _, _, dataset = micro
    assert len(chosen_pairs(dataset, o.data)) == 6
    with pytest.raises(DataError, match="there are 6 kept"):
        chosen_pairs(dataset, dataclasses.replace(o.data, verdicts=["rejected"]))


@pytest.mark.fault
def test_damaged_shards_are_named_and_cost_only_their_samples(micro, tmp_path):
    """A flipped byte in a sample shard: ahead, that sample is quarantined and the others go on; online, it is named."""
    o = micro[0]
    shards = write_shards(tmp_path / "shards", 3, pairs=True, N=2)
    tar = sorted(shards.glob("*.tar"))[0]
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 255
    tar.write_bytes(data)
    with distributed():
        done = encode_shards(open_dataset(shards), str(tmp_path / "latents"), o.model.encoders, o.data.clip, CPU)
    assert (done.committed, done.quarantined) == (5, 1)
    dataset = open_dataset(shards)
    online = EncodeOnline(dataset, o.model.encoders, o.data.clip, CPU)
    good = set(open_dataset(str(tmp_path / "latents")).order)
    (bad,) = set(dataset.order) - good
    with pytest.raises(BadSample, match=bad):
        online(bad)
    assert {online(key).key for key in good} == good
