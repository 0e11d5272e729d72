"""SAWG and WSA: identity at initialisation, gradients, locality, ring, symmetry, 2-D RoPE."""

import pytest
import torch
from diffusers import WanTransformer3DModel

from trainer.model.sawg import SawgOptions, WanOptions, WorldGenerator, is_new
from trainer.model.wan import init_new
from trainer.model.wsa import WsaOptions

WAN = WanOptions(
    num_layers=2, num_attention_heads=2, attention_head_dim=24, ffn_dim=64, in_channels=4, text_dim=16, freq_dim=32
)
T, R, H, W = 3, 2, 4, 6


def generator(wsa: bool = True, init: str = "zero", norm: str = "modulated") -> WorldGenerator:
    torch.manual_seed(0)
    model = WorldGenerator(WAN, SawgOptions(init=init), WsaOptions(enabled=wsa, init=init, norm=norm))
    init_new(model, [name for name, _ in model.named_parameters() if is_new(name)])
    return model


def inputs(branches: int, samples: int = 1, references: int = R) -> dict:
    g = torch.Generator().manual_seed(branches)
    rows = branches * samples
    return {
        "noisy": torch.randn(rows, 4, T, H, W, generator=g),
        "timestep": torch.full((rows,), 700.0),
        "text": torch.randn(rows, 5, 16, generator=g),
        "geometry": torch.randn(rows, 8, T, H, W, generator=g),
        "references": torch.randn(rows, 4, references, H, W, generator=g),
        "branches": branches,
    }


def plain(model: WorldGenerator, x: dict) -> torch.Tensor:
    """diffusers' own Wan with the same base weights on [video | references]."""
    wan = WanTransformer3DModel.from_config(dict(model.wan.config))
    wan.load_state_dict({k: v for k, v in model.wan.state_dict().items() if ".wsa." not in k})
    latents = torch.cat([x["noisy"], x["references"]], dim=2)
    return wan(latents, x["timestep"], x["text"], return_dict=False)[0][:, :, :T]


@pytest.mark.parametrize("branches", [1, 2, 4])
@pytest.mark.parametrize("references", [0, R])
@torch.no_grad()
def test_initialised_model_is_plain_wan_exactly(branches, references):
    model, x = generator(), inputs(branches, references=references)
    assert torch.equal(model(**x), plain(model, x))


@torch.no_grad()
def test_random_initialisation_is_not_plain_wan():
    model, x = generator(init="random"), inputs(2)
    assert not torch.allclose(model(**x), plain(model, x), atol=1e-4)


@pytest.mark.parametrize("norm", ["modulated", "affine"])
@pytest.mark.parametrize("hidden", [0, 6])
def test_gradient_reaches_every_new_parameter_after_one_step(norm, hidden):
    torch.manual_seed(0)
    model = WorldGenerator(WAN, SawgOptions(hidden=hidden), WsaOptions(enabled=True, norm=norm))
    init_new(model, [name for name, _ in model.named_parameters() if is_new(name)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        (model(**inputs(2)) - 1).square().mean().backward()
        optimizer.step()
    new = {name: p.grad for name, p in model.named_parameters() if is_new(name)}
    dead = [name for name, grad in new.items() if grad is None or not grad.any()]
    assert len(new) > 20
    assert not dead


def wsa_input(branches: int) -> tuple:
    """A block with a live WSA, tokens of `branches` branches, and the layout the generator would hand it."""
    model = generator(init="random")
    model.wan.rope.branches, model.wan.rope.references = branches, R
    cos, sin, layout = model.wan.rope(torch.zeros(branches, 4, T + R, H, W))
    tokens = torch.randn(branches, (T + R) * layout.tokens, 48, generator=torch.Generator().manual_seed(1))
    return model.wan.blocks[0].wsa, tokens, (cos, sin, layout)


def changed_frames(before: torch.Tensor, after: torch.Tensor, tokens: int) -> set[tuple[int, int]]:
    moved = (before != after).any(-1).unflatten(1, (-1, tokens)).any(-1)
    return {(int(b), int(f)) for b, f in moved.nonzero()}


@pytest.mark.parametrize("branches", [2, 3, 4])
@torch.no_grad()
def test_a_frame_is_read_by_the_same_frame_of_the_next_branch_alone(branches):
    wsa, x, (_, _, layout) = wsa_input(branches)
    read_before = wsa(torch.zeros_like(x), x, layout)
    y = x.clone()
    y[1, 2 * layout.tokens + 3] += 1  # one token of frame 2 of branch 1
    moved = changed_frames(read_before, wsa(torch.zeros_like(x), y, layout), layout.tokens)
    # Branch 1 itself asks differently at frame 2; of the others only the next one on the ring sees it.
    assert moved == {(1, 2), (2 % branches, 2)}


@torch.no_grad()
def test_references_take_no_part():
    wsa, x, (_, _, layout) = wsa_input(2)
    y = x.clone()
    y[:, T * layout.tokens :] += 1
    before, after = (wsa(torch.zeros_like(x), z, layout) for z in (x, y))
    assert torch.equal(before, after)
    assert not before[:, T * layout.tokens :].any()


@torch.no_grad()
def test_two_branches_are_symmetric():
    model, x = generator(init="random"), inputs(2)
    swapped = {k: v.flip(0) if isinstance(v, torch.Tensor) else v for k, v in x.items()}
    torch.testing.assert_close(model(**swapped), model(**x).flip(0))


@torch.no_grad()
def test_branches_of_one_sample_do_not_see_another_sample():
    model, x = generator(init="random"), inputs(2, samples=2)
    y = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in x.items()}
    y["noisy"][2:] += 1
    before, after = model(**x), model(**y)
    torch.testing.assert_close(before[:2], after[:2])
    assert not torch.allclose(before[2:], after[2:])


@torch.no_grad()
def test_rotary_table_of_frame_0_equals_the_full_table():
    """Within a frame the temporal rotation is common to q and k and cancels: WSA's RoPE is 2-D."""
    wsa, x, (cos, sin, layout) = wsa_input(2)
    n = layout.tokens
    assert torch.allclose(cos[:, :n], layout.cos)
    for frame in range(T):
        query, source = (x[b : b + 1, frame * n : (frame + 1) * n] for b in (0, 1))
        full = wsa.attn(query, source, None, (cos[:, frame * n : (frame + 1) * n], sin[:, frame * n : (frame + 1) * n]))
        flat = wsa.attn(query, source, None, (layout.cos, layout.sin))
        torch.testing.assert_close(full, flat, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_single_branch_runs_no_wsa(monkeypatch):
    model = generator(init="random")
    monkeypatch.setattr(type(model.wan.blocks[0].wsa), "forward", lambda *a: pytest.fail("WSA ran for one branch"))
    model(**inputs(1))


def test_new_parameters_start_as_documented():
    model = generator()
    block = model.wan.blocks[1]
    for name in ("to_q.weight", "to_k.bias", "to_v.weight", "norm_q.weight"):
        assert torch.equal(block.wsa.attn.get_parameter(name), block.attn1.get_parameter(name))
    assert not block.wsa.attn.to_out[0].weight.any()
    assert not model.geometry.out.weight.any()
