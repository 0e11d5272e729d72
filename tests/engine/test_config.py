"""The configuration: what is typed wrong is refused with the nearest right name, and the page tells the truth."""

import dataclasses
from pathlib import Path

import pytest

from engine import config
from engine.config import UnrollOptions, fingerprint, load
from shards.config import ConfigError, leaves
from shards.options import page_command

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_of_the_makefile():
    options = load(["input=videos/", "output=out/", "perception=oracle", "runner=ray", "limit=10", "clip.frames=49"])
    assert (options.perception.tracker, options.perception.geometry, options.runner.kind) == ("oracle", "oracle", "ray")
    assert (options.limit, options.clip.frames) == (10, 49)
    assert load(["input=a", "render.size=[240,416]"]).render.size == [240, 416]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["clip.frmes=49"], "unknown key 'clip.frmes'; did you mean clip.frames?"),
        (["frames=49"], "unknown key 'frames'; did you mean clip.frames?"),
        (["zzz=1"], "unknown key 'zzz'; docs/configuration.md lists every key"),
        (["+clip.frames=49"], "unknown key '+clip.frames'; did you mean clip.frames?"),
        (["clip.frames"], "'clip.frames': key=value was expected"),
        (["clip.frames=many"], "clip.frames: Value 'many' of type 'str' could not be converted to Integer"),
        (["clip.frames=50"], "clip.frames=50: T = 1 + 4k was expected"),
        (["render.size=[100,200]"], "in multiples of 8 was expected"),
        (["render.size=[480]"], r"\[height,width\] in multiples of 8 was expected"),
        (["perception=embeded"], "choose one of .*; did you mean embedded?"),
        (["shots.detector=adaptiv"], "shots.detector=adaptiv: choose one of adaptive, content; did you mean adaptive?"),
        (["perception.tracker=moge"], "perception.tracker=moge: choose one of"),
        (["clip.focal_px=3", "clip.fov_deg=4"], "give one"),
        (["retry=timeuot"], "did you mean timeout?"),
        (["limit=-1"], "limit=-1"),
    ],
)
def test_refusals_say_what_was_expected(words, message):
    with pytest.raises(ConfigError, match=message.replace("+", r"\+").replace("?", r"\?")):
        load(["input=a", *words])


def test_input_is_needed_and_may_be_any_path():
    with pytest.raises(ConfigError, match=r"input=\.\.\. is missing"):
        load([])
    for path in (
        "my videos/a,b=c.mp4",
        "s3://bucket/x y",
        "it's",
        'a "b"',
        "back\\slash",
        "[x]{y}",
        "日本.mp4",
        "${x}",
    ):
        assert load([f"input={path}"]).input == path


def test_equal_work_has_equal_fingerprints():
    """Where and how fast may differ; what comes out may not. Options of models that are not used do not count."""
    one = fingerprint(load(["input=a", "perception=oracle"]))
    assert one == fingerprint(
        load(["input=b", "output=c", "runner=ray", "limit=3", "perception=oracle", "decode.threads=7", "retry=failed"])
    )
    unused = "perception.embedded.tracker.people.max_subjects=3"
    assert one == fingerprint(load(["input=a", "perception=oracle", unused]))
    assert one != fingerprint(load(["input=a", "perception=oracle", "perception.oracle.seed=3"]))
    assert one != fingerprint(load(["input=a", "perception=oracle", "clip.fps=24"]))
    assert config.fingerprint_id(one) != config.fingerprint_id(one | {"code": "other"})


def test_code_is_part_of_the_fingerprint(monkeypatch, tmp_path):
    before = fingerprint(load(["input=a", "perception=oracle"]))["code"]
    monkeypatch.setattr(config, "CODE", config.CODE[1:])
    assert fingerprint(load(["input=a", "perception=oracle"]))["code"] != before


def test_every_field_is_described():
    undescribed = [name for name, field, _ in leaves(UnrollOptions()) if not field.metadata.get("doc")]
    assert not undescribed


def test_every_group_file_composes():
    for group, choices in config.groups().items():
        for choice in choices:
            load(["input=a", f"{group}={choice}"])


def test_the_page_is_in_sync(tmp_path):
    assert (ROOT / "docs" / "configuration.md").read_text() == config.page(), (
        "run: python -m engine.config > docs/configuration.md"
    )
    stale = tmp_path / "page.md"
    stale.write_text(config.page() + "x")
    assert page_command(["--check", str(stale)], config.page(), "python -m engine.config") == 1


def test_defaults_agree_with_the_group_files():
    """Without any file the dataclasses say the same as conf/unroll.yaml with its defaults."""
    assert dataclasses.replace(load(["input=a"]), input="") == UnrollOptions()
