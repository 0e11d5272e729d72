"""Sampling: the ring of N agents, guidance passes, requests without a target, videos that decode."""

from pathlib import Path

import pytest
import torch
from trainer_ranks import options
from trainer_worlds import write_shards

from shards import codec
from trainer.config import SampleOptions
from trainer.encode import open_clips
from trainer.flow import FlowOptions
from trainer.launch import distributed
from trainer.model.parallelize import Grid
from trainer.model.sawg import SawgOptions, WanOptions, WorldGenerator
from trainer.model.wsa import WsaOptions
from trainer.sample import sample_latents, sample_units

WAN = WanOptions(
    num_layers=2, num_attention_heads=2, attention_head_dim=24, ffn_dim=64, in_channels=4, text_dim=16, freq_dim=32
)


def arguments(agents: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(agents, *shape, generator=g)  # noqa: E731
    return [make(4, 2, 4, 4), make(5, 16), make(5, 16), make(8, 2, 4, 4), make(4, 1, 4, 4)]


def generator() -> WorldGenerator:
    torch.manual_seed(0)
    return WorldGenerator(WAN, SawgOptions(), WsaOptions(enabled=True))  # random throughout: WSA matters


def run(model, inputs, agents, **changes) -> torch.Tensor:
    return sample_latents(model, *inputs, agents, FlowOptions(), SampleOptions(steps=3, **changes), torch.float32)


def test_agents_read_along_a_directed_ring():
    """One step: agent n moves with agent n-1 and with itself, agent 0 with the last."""
    model, inputs = generator(), arguments(3)
    other = [x.clone() for x in inputs]
    other[0][1] += 1  # the noise of agent 1
    changes = {"image_scale": 1.0, "text_scale": 1.0}
    one = SampleOptions(steps=1, **changes)
    results = [sample_latents(model, *x, 3, FlowOptions(), one, torch.float32) for x in (inputs, other)]
    moved = [not torch.equal(a, b) for a, b in zip(*results, strict=True)]
    # Two layers: agent 2 reads agent 1 in each, agent 0 reads agent 2 in the second, after it has changed.
    assert moved == [True, True, True]
    model.wan.blocks[1].wsa = None
    results = [sample_latents(model, *x, 3, FlowOptions(), one, torch.float32) for x in (inputs, other)]
    assert [not torch.equal(a, b) for a, b in zip(*results, strict=True)] == [False, True, True]


def test_guidance_passes(monkeypatch):
    model, inputs, seen = generator(), arguments(2), []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *a: seen.append(a) or forward(*a))
    _, text, empty, geometry, references = inputs
    for scales, passes in (((1.0, 1.0), 1), ((5.0, 5.0), 2), ((5.0, 7.5), 3)):
        seen.clear()
        run(model, inputs, 2, image_scale=scales[0], text_scale=scales[1])
        assert len(seen) == 3 * passes
        assert all(torch.equal(call[3], geometry) for call in seen)  # geometry stays in every pass
    conditional, negative, image = seen[:3]
    assert torch.equal(conditional[2], text)
    assert torch.equal(conditional[4], references)
    assert torch.equal(negative[2], empty)
    assert not negative[4].any()
    assert torch.equal(image[2], empty)
    assert torch.equal(image[4], references)


def test_latents_stay_in_float32_and_the_first_step_is_wans():
    model, inputs = generator(), arguments(2)
    out = run(model, inputs, 2)
    assert out.dtype == torch.float32
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("kind", ["anchor", "holistic"])
def test_videos_of_a_pair(tmp_path, kind):
    shards = write_shards(tmp_path / "shards", 1, pairs=True)
    o = options(shards, tmp_path / "out", "sample.steps=2", f"sample.condition={kind}")
    with distributed():
        read, dataset = open_clips(o.shards, str(tmp_path / "latents"), o.model, o.data, torch.device("cpu"))
    torch.manual_seed(0)
    model = WorldGenerator(o.model.wan, o.model.sawg, o.model.wsa)
    units = [tuple(dataset.order)]
    written = sample_units(model, units, read, o, tmp_path / "videos", torch.device("cpu"), Grid(None))
    assert [Path(p).stem for p in written] == dataset.order
    video = codec.decode("target.mp4", written[0].read_bytes())
    assert video.shape == (5, 16, 3 * 32, 3)  # target | condition | sample
