"""The command line of a verb: what it prints, how it ends; signals."""

import os
import signal

import pytest
import yaml

from shards.store import StorageError
from trainer.launch import NonFiniteLoss, Stop, command
from trainer.train import train


def run(monkeypatch, *words: str, verb=train) -> int:
    monkeypatch.setattr("sys.argv", ["trainer.train", *words])
    return command("train", "Train the world generator.", verb)


def fail(error: Exception):
    def verb(options):
        raise error

    return verb


@pytest.mark.parametrize(
    ("words", "verb", "code", "said"),
    [
        (["modle=tiny"], train, 3, "ConfigError: unknown key 'modle'; did you mean model?"),
        (["shards=/nowhere/at/all"], train, 3, "FileNotFoundError: /nowhere/at/all: no shards here"),
        (["shards=x"], fail(NonFiniteLoss("step 6: the loss is nan")), 4, "NonFiniteLoss: step 6: the loss is nan"),
        (["shards=x"], fail(StorageError("no bucket")), 5, "StorageError: no bucket"),
    ],
)
def test_a_refusal_is_one_line_and_an_exit_code(monkeypatch, capsys, words, verb, code, said):
    assert run(monkeypatch, *words, verb=verb) == code
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"trainer.train: {said}")
    assert len(err.splitlines()) == 1


def test_a_fault_of_the_code_keeps_its_traceback(monkeypatch):
    with pytest.raises(ZeroDivisionError):
        run(monkeypatch, "shards=x", verb=fail(ZeroDivisionError()))


def test_show_prints_the_outcome_and_runs_nothing(monkeypatch, capsys):
    words = ("shards=a b,c=${d}", "model=tiny", "experiment=stage2", "optimizer.lr=1e-3", "--show")
    assert run(monkeypatch, *words, verb=fail(AssertionError("it ran"))) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["shards"] == "a b,c=${d}"  # a path, whatever Hydra would take it for
    assert shown["data"]["branches"] == 2
    assert shown["optimizer"]["lr"] == 1e-3
    assert shown["latents"] == "runs/tiny/latents"


def test_help_names_the_groups(monkeypatch, capsys):
    assert run(monkeypatch, "--help", verb=fail(AssertionError("it ran"))) == 0
    assert "parallel= deepspeed_zero2 | deepspeed_zero3 | fsdp | hsdp | single" in capsys.readouterr().out


def test_a_second_sigterm_changes_nothing_and_a_second_ctrl_c_ends_at_once():
    stop = Stop()
    try:
        assert not stop.asked
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        stop.restore()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
