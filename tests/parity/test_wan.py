"""Official-format checkpoints through our loader against Wan's formulas, and against the official code where it is."""

import importlib
import json
import os
import sys
import types
from pathlib import Path

import pytest
import torch
import wan_formulas
from safetensors.torch import save_file

from trainer.model.sawg import SawgOptions, WanOptions, WorldGenerator
from trainer.model.wan import init_new, load_weights
from trainer.model.wsa import WsaOptions

SIZE = {"layers": 2, "heads": 2, "head_dim": 24, "ffn": 64, "channels": 4, "text": 16, "freq": 32}
WAN = WanOptions(
    num_layers=2, num_attention_heads=2, attention_head_dim=24, ffn_dim=64, in_channels=4, text_dim=16, freq_dim=32
)
TOLERANCE = 1e-4  # relative, float32


def write(state: dict, folder: Path, form: str) -> Path:
    """The checkpoint in the form of Phantom 1.3B (.pth), or of Phantom 14B (sharded safetensors with an index)."""
    if form == "pth":
        torch.save(state, folder / "Phantom-Wan-1.3B.pth")
        return folder / "Phantom-Wan-1.3B.pth"
    names = sorted(state)
    files = {f"Phantom_Wan_14B-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, part in files.items():
        save_file({name: state[name] for name in part}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "Phantom_Wan_14B.safetensors.index.json").write_text(json.dumps(index))
    return folder


def load(path: Path) -> WorldGenerator:
    with torch.device("meta"):
        model = WorldGenerator(WAN, SawgOptions(), WsaOptions(enabled=True))
    model.to_empty(device="cpu")
    init_new(model, load_weights(model, path))
    model.restore_rope(torch.device("cpu"))
    return model


def inputs(frames: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, frames, 6, 8, generator=g)
    return x, torch.tensor([37.5, 910.0]), torch.randn(2, 7, 16, generator=g)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("form", ["pth", "sharded"])
@torch.no_grad()
def test_official_checkpoint_gives_wans_formulas(tmp_path, form):
    state = wan_formulas.random_checkpoint(**SIZE)
    model = load(write(state, tmp_path, form))
    x, t, text = inputs(frames=5)
    expected = wan_formulas.forward(state, x, t, text, heads=2, layers=2, freq=32)
    # Phantom: references follow the video on the time axis; the output keeps the video.
    got = model(x[:, :, :3], t, text, torch.randn(2, 8, 3, 6, 8), x[:, :, 3:], branches=2)
    assert relative(got, expected[:, :, :3]) < TOLERANCE


@torch.no_grad()
def test_official_code_agrees(tmp_path, monkeypatch):
    """The transformer of the official repository, its CUDA attention replaced by the same mathematics."""
    repository = os.environ.get("WAN_REPO")
    if not repository:
        pytest.skip(
            "the official code is not here. To run it: git clone https://github.com/Wan-Video/Wan2.1, then "
            "WAN_REPO=$PWD/Wan2.1 pytest tests/parity (nothing else to install)"
        )
    modules = Path(repository) / "wan" / "modules"
    if not (modules / "model.py").is_file():
        pytest.fail(f"WAN_REPO={repository}: expected a checkout of github.com/Wan-Video/Wan2.1, found no {modules}")
    package = types.ModuleType("wan_modules")  # wan/__init__.py would import the whole pipeline and what it needs
    package.__path__ = [str(modules)]
    monkeypatch.setitem(sys.modules, "wan_modules", package)
    official = importlib.import_module("wan_modules.model")

    def attention(q, k, v, k_lens=None, **_):
        out = [
            torch.nn.functional.scaled_dot_product_attention(
                *(s[None].transpose(1, 2).float() for s in (q[i], k[i, : k_lens[i]], v[i, : k_lens[i]]))
            ).transpose(1, 2)[0]
            if k_lens is not None
            else torch.nn.functional.scaled_dot_product_attention(
                *(s[None].transpose(1, 2).float() for s in (q[i], k[i], v[i]))
            ).transpose(1, 2)[0]
            for i in range(len(q))
        ]
        return torch.stack(out)

    official.flash_attention = attention  # the same mathematics without the CUDA kernel
    reference = official.WanModel(
        dim=48, ffn_dim=64, freq_dim=32, text_dim=16, text_len=7, in_dim=4, out_dim=4, num_heads=2, num_layers=2
    ).eval()
    state = wan_formulas.random_checkpoint(**SIZE)
    assert sorted(reference.state_dict()) == sorted(state)
    reference.load_state_dict(state)
    x, t, text = inputs()
    expected = torch.stack(reference(list(x), t, list(text), seq_len=3 * 3 * 4))
    got = load(write(state, tmp_path, "pth"))(x, t, text, torch.zeros(2, 8, 3, 6, 8), torch.zeros(2, 4, 0, 6, 8))
    assert relative(got, expected) < TOLERANCE
