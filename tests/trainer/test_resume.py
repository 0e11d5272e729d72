"""Killed and resumed equals uninterrupted; half-written checkpoints are never used; bad input stops with a reason."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from trainer_ranks import losses, options, train_alone, train_on_ranks

from shards.dataset import BadSample
from shards.reader import StateMismatch
from trainer.state import CheckpointFailed
from trainer.train import NonFiniteLoss, Run, train


@pytest.fixture(scope="module")
def uninterrupted(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return train_alone(shards, folder, "loop.steps=20", "loop.ema=0.9", "loop.checkpoint_every=8"), folder


def weights(folder):
    return {**load_file(folder / "export/world.safetensors"),
            **load_file(folder / "export/transformer/diffusion_pytorch_model.safetensors")}  # fmt: skip


class Killed(BaseException):
    """Stands for the end of the process."""


def train_and_die(shards, output, at: int, monkeypatch, *overrides: str) -> None:
    """Train until step `at` is done, then vanish without any clean-up of the loop."""
    step = Run.step

    def dying(self, stream):
        taken = step(self, stream)
        if self.progress.step == at:
            self.checkpoints.finish()  # the save in the background has landed
            raise Killed
        return taken

    with monkeypatch.context() as patch:
        patch.setattr(Run, "step", dying)
        with pytest.raises(Killed):
            train(options(shards, output, *overrides))


def test_resumed_equals_uninterrupted_bit_for_bit(shards, uninterrupted, tmp_path, monkeypatch):
    curve, whole = uninterrupted
    settings = ("loop.steps=20", "loop.ema=0.9", "loop.checkpoint_every=8")
    train_and_die(shards, tmp_path, 11, monkeypatch, *settings)  # 3 steps after the checkpoint of step 8
    train(options(shards, tmp_path, *settings))
    resumed = losses(tmp_path)
    assert resumed[:10] == curve[:10]  # the log of step 11 was lost with the process
    assert resumed[10:] == curve[8:]
    one, other = weights(whole), weights(tmp_path)  # the averaged weights: EMA and optimiser came back too
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_resumed_on_another_number_of_ranks(shards, uninterrupted, tmp_path, monkeypatch):
    curve, _ = uninterrupted
    settings = ["loop.steps=20", "loop.ema=0.9", "loop.checkpoint_every=8"]
    train_and_die(shards, tmp_path / "run", 9, monkeypatch, *settings, f"latents={tmp_path}/latents")
    curves = train_on_ranks(2, {"run": [*settings, "parallel=fsdp", "loop.accumulate=1"]}, shards, tmp_path)
    assert curves["run"][8:] == pytest.approx(curve[8:], rel=1e-5)


def test_half_written_checkpoint_is_passed_over(shards, uninterrupted, tmp_path):
    curve, whole = uninterrupted
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints/step-00000020")
    (tmp_path / "checkpoints/step-00000018").mkdir()
    (tmp_path / "checkpoints/step-00000018/__0_0.distcp").write_bytes(b"half")
    (tmp_path / "metrics.jsonl").unlink()
    train(options(shards, tmp_path, "loop.steps=20", "loop.ema=0.9"))
    assert losses(tmp_path) == curve[16:]


def test_resume_on_other_samples_is_refused(shards, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted[1], tmp_path, dirs_exist_ok=True)
    with pytest.raises(StateMismatch, match="seed"):
        train(options(shards, tmp_path, "loop.steps=30", "loop.ema=0.9", "data.seed=7"))
    with pytest.raises(StateMismatch, match="held_out"):
        train(options(shards, tmp_path, "loop.steps=30", "loop.ema=0.9", "data.held_out=0.4"))


@pytest.mark.fault
def test_full_disk_at_a_checkpoint(shards, tmp_path, monkeypatch):
    from torch.distributed.checkpoint import filesystem

    write = filesystem.FileSystemWriter.write_data

    def full(self, *arguments):
        if "step-00000008" in str(self.path):
            raise OSError(28, "No space left on device")
        return write(self, *arguments)

    monkeypatch.setattr(filesystem.FileSystemWriter, "write_data", full)
    with pytest.raises(CheckpointFailed, match=r"step 8 was not written.*No space left.*resumes from step 4"):
        train(options(shards, tmp_path, "loop.steps=12", "loop.checkpoint_every=4"))
    monkeypatch.undo()
    train(options(shards, tmp_path, "loop.steps=12", "loop.checkpoint_every=4"))
    assert losses(tmp_path)[-8:] == train_alone(shards, tmp_path / "whole", "loop.steps=12")[-8:]


@pytest.mark.fault
def test_not_a_number_stops_before_any_weight_changes(shards, tmp_path, monkeypatch):
    import trainer.train as loop

    honest, calls = loop.batch_loss, []

    def poisoned(*arguments):
        calls.append(1)
        return honest(*arguments) * (float("nan") if len(calls) == 14 else 1)  # second micro-batch of step 6

    monkeypatch.setattr(loop, "batch_loss", poisoned)
    with pytest.raises(NonFiniteLoss, match=r"step 6: the loss is nan.*0000-[ab].*last checkpoint is step 4"):
        train(options(shards, tmp_path, "loop.checkpoint_every=4"))
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-00000004"]


@pytest.mark.fault
def test_damaged_latents_name_the_sample(shards, uninterrupted, tmp_path):
    latents = tmp_path / "latents"
    shutil.copytree(uninterrupted[1] / "latents", latents)
    tar = next(latents.glob("*.tar"))
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 255
    tar.write_bytes(data)
    with pytest.raises(BadSample, match=r"0000-[ab].*sha256"):
        train(options(shards, tmp_path / "run", f"latents={latents}"))
    train(options(shards, tmp_path / "skip", f"latents={latents}", "data.bad_samples=skip", "data.bad_cap=30"))
    assert len(losses(tmp_path / "skip")) == 10


@pytest.mark.fault
@pytest.mark.slow
def test_sigterm_saves_and_ends(shards, tmp_path):
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
               "from pathlib import Path; from trainer_ranks import options; from trainer.train import train\n"
               f"train(options(Path({str(shards)!r}), Path({str(tmp_path)!r}), 'loop.steps=100000'))"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (tmp_path / "metrics.jsonl").exists() or not losses(tmp_path):
        assert process.poll() is None
        time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert (tmp_path / f"checkpoints/step-{last:08d}/.metadata").is_file()
    assert not (tmp_path / "export").exists()


@pytest.mark.fault
@pytest.mark.slow
def test_dead_rank_ends_the_job_and_leaves_the_last_checkpoint(shards, tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        f"import os, sys; sys.path.insert(0, {os.path.dirname(__file__)!r})\n"
        "from pathlib import Path; from trainer_ranks import options\n"
        "from trainer.train import Run, train\n"
        "step = Run.step\n"
        "def dying(self, stream):\n"
        "    if self.progress.step == 6 and os.environ['RANK'] == '1': os._exit(9)\n"
        "    return step(self, stream)\n"
        "Run.step = dying\n"
        f"train(options(Path({str(shards)!r}), Path({str(tmp_path)!r}) / 'run', 'parallel=fsdp', 'loop.accumulate=1',\n"
        "              'loop.checkpoint_every=4'))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    job = subprocess.run(
        command, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert job.returncode != 0
    assert "exitcode  : 9" in job.stderr
    curve = train_alone(shards, tmp_path / "whole", "loop.steps=10")
    train(options(shards, tmp_path / "run"))  # one rank takes over
    assert losses(tmp_path / "run")[-6:] == pytest.approx(curve[-6:], rel=1e-5)
