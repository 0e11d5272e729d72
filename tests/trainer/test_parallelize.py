"""What `parallelize` does to a model, seen on one process: attention backends, recomputation, a shard's own bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.model.parallelize import Grid, ParallelError, ParallelOptions, parallelize, set_attention
from trainer.model.sawg import SawgOptions, WanOptions, WorldGenerator
from trainer.model.wsa import WsaOptions

WAN = WanOptions(
    num_layers=2, num_attention_heads=2, attention_head_dim=24, ffn_dim=64, in_channels=4, text_dim=16, freq_dim=32
)


def generator() -> WorldGenerator:
    torch.manual_seed(0)
    return WorldGenerator(WAN, SawgOptions(), WsaOptions(enabled=True))


@pytest.fixture
def attention_restored():
    """diffusers keeps the last backend that was set for the whole process."""
    yield
    set_attention(generator(), "native")


@pytest.mark.parametrize(
    ("capability", "chosen"),
    [(None, "native"), ((8, 0), "native"), ((8, 9), "native"), ((9, 0), "_native_cudnn"), ((10, 0), "_native_cudnn")],
    ids=["cpu", "A100", "L40S", "H100", "B200"],
)
def test_attention_follows_what_the_device_can(monkeypatch, attention_restored, capability, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    model = generator()
    assert set_attention(model, "auto") == chosen
    for block in model.wan.blocks:
        for attention in (block.attn1, block.attn2, block.wsa.attn):
            assert attention.processor._attention_backend.value == chosen


def test_attention_that_cannot_run_is_named():
    with pytest.raises(ParallelError, match=r"parallel\.attention=quick"):
        set_attention(generator(), "quick")
    with pytest.raises(ParallelError, match=r"parallel\.attention=_flash_3"):  # a package that no CPU machine has
        set_attention(generator(), "_flash_3")


class Count(TorchDispatchMode):
    """Forward calls of fused attention, and of matrix products, inside the block."""

    def __init__(self):
        super().__init__()
        self.attention = self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        self.attention += "attention" in name and "backward" not in name
        self.products += "addmm" in name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("checkpointing", "attends_again"), [("none", False), ("selective", False), ("full", True)])
def test_what_is_made_again_in_the_backward_pass(checkpointing, attends_again):
    model = generator()
    parallelize(model, ParallelOptions(checkpointing=checkpointing), Grid(None))
    out = model(
        torch.randn(2, 4, 3, 4, 4), torch.ones(2), torch.randn(2, 5, 16), torch.randn(2, 8, 3, 4, 4),
        torch.randn(2, 4, 1, 4, 4), 2,
    )  # fmt: skip
    with Count() as count:
        out.square().mean().backward()
    assert count.attention == (3 * WAN.num_layers if attends_again else 0)  # self, cross and WSA of each layer
    assert (count.products > 0) == (checkpointing != "none")


LOADING = """
import json, os, sys, time
from pathlib import Path
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
sys.path.insert(0, sys.argv[1] + "/tests/parity")
import wan_formulas
from trainer.config import ModelOptions
from trainer.model.build import build_generator
from trainer.model.parallelize import Grid, ParallelOptions
from trainer.model.sawg import WanOptions

SIZE = dict(layers=5, heads=6, head_dim=128, ffn=3072, channels=4, text=64, freq=64)
WAN = WanOptions(num_layers=5, num_attention_heads=6, attention_head_dim=128, ffn_dim=3072, in_channels=4, text_dim=64,
                 freq_dim=64)
folder, rank, world = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
if rank < 0:  # write the checkpoint in files as Phantom's 14B has them
    from safetensors.torch import save_file
    state = wan_formulas.random_checkpoint(**SIZE)
    names = sorted(state)
    files = {f"Phantom_Wan_14B-{i}.safetensors": names[i::6] for i in range(6)}
    for file, part in files.items():
        save_file({n: state[n].bfloat16() for n in part}, folder / file)
    index = {"weight_map": {n: file for file, part in files.items() for n in part}}
    (folder / "Phantom_Wan_14B.safetensors.index.json").write_text(json.dumps(index))
    sys.exit()

def peak(name):
    return int(next(l for l in open("/proc/self/status") if l.startswith(name)).split()[1]) * 1024

if world > 1:
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
else:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
options = ModelOptions(weights=str(folder), wan=WAN)
small = WanOptions(num_layers=1, num_attention_heads=1, attention_head_dim=24, ffn_dim=8, in_channels=4, text_dim=8)
build_generator(ModelOptions(from_scratch=True, wan=small), "all", ParallelOptions(strategy="fsdp"), Grid(None),
                torch.device("cpu"))  # what is imported on the way is there
before = peak("VmRSS")
open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts again
model = build_generator(options, "all", ParallelOptions(strategy="fsdp"), Grid(None), torch.device("cpu"))
grown = peak("VmHWM") - before
right = True
if world > 1:
    state = wan_formulas.random_checkpoint(**SIZE)
    for ours, theirs in (("attn1.to_q.weight", "self_attn.q.weight"), ("ffn.net.2.weight", "ffn.2.weight")):
        local = model.get_parameter(f"wan.blocks.3.{ours}").to_local()
        right &= torch.equal(local, state[f"blocks.3.{theirs}"].bfloat16().float().chunk(world)[rank])
total = sum(p.numel() for p in model.parameters()) * 4
print(json.dumps({"grown": grown, "total": total, "right": right}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc/self/clear_refs")
def test_a_rank_of_many_holds_its_own_shard_alone(tmp_path):
    """Rank 5 of 16 loads a checkpoint of six files: it holds its sixteenth, and never the whole, mapped pages included.

    One rank alone, measured in the same way, holds everything: so the measure is one that can fail.
    """
    root = Path(__file__).resolve().parents[2]

    def loaded(rank: int, world: int) -> dict:
        done = subprocess.run(
            [sys.executable, "-c", LOADING, root, tmp_path, str(rank), str(world)], capture_output=True, text=True,
            check=False, env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}

    loaded(-1, 0)
    whole, part = loaded(0, 1), loaded(5, 16)
    assert part["right"]
    assert whole["grown"] > 0.9 * whole["total"]
    assert part["grown"] < 0.4 * part["total"]  # its float32 sixteenth, its part of the bfloat16 pages, one tensor
