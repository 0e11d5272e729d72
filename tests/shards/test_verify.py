"""verify finds every kind of damage, repair and gc put right what can be, reshard keeps every sample; the commands."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_samples import members, unit

from shards.__main__ import main
from shards.commit import ShardLimits
from shards.dataset import open_dataset
from shards.maintain import gc, reshard
from shards.run import Run
from shards.store import open_store
from shards.verify import verify

COUNT = 5


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    folder = tmp_path_factory.mktemp("right")
    with Run.open(str(folder), config={}, limits=ShardLimits(samples=2)) as run:
        run.extend(unit(i) for i in range(COUNT))
        for todo in run.todo():
            run.spool.put(todo, members(todo.key, int(todo.key[:12], 16)))
        run.finish()
    return folder


@pytest.fixture
def output(right, tmp_path):
    return shutil.copytree(right, tmp_path / "out")


def problems(output) -> list[str]:
    report = verify(open_store(output))
    assert report.ok == (not report.problems)
    return [f"{p['object']}: {p['problem']}" for p in report.problems]


def test_a_right_output_verifies(right):
    assert problems(right) == []


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_flipped_bit_is_found(right, data):
    path = sorted(right.glob("*.tar"))[1]
    before = path.read_bytes()
    place, bit = data.draw(st.integers(0, len(before) - 1)), data.draw(st.integers(0, 7))
    try:
        path.write_bytes(before[:place] + bytes([before[place] ^ (1 << bit)]) + before[place + 1 :])
        report = verify(open_store(right), schema=False)
        assert any(path.name in p["object"] for p in report.problems)
    finally:
        path.write_bytes(before)


def edit_commit(output, number, change) -> None:
    path = output / "_commits" / f"{number:06d}.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


DAMAGE = {
    "metaworld-000001.tar: has ": lambda o: (o / "metaworld-000001.tar").write_bytes(b"short"),
    "metaworld-000001.tar: tar missing": lambda o: (o / "metaworld-000001.tar").unlink(),
    "_commits/000001.json: commit record missing": lambda o: (o / "_commits/000001.json").unlink(),
    "_commits/000000.json: ": lambda o: (o / "_commits/000000.json").write_text("{"),
    "metaworld-000009.tar: orphan tar": lambda o: (o / "metaworld-000009.tar").write_bytes(b"x"),
    "_index/manifest.parquet: does not follow": lambda o: edit_commit(
        o, 0, lambda r: r["samples"][0]["row"].update(height=9)
    ),
    "the manifest row of the commit record": lambda o: edit_commit(
        o, 0, lambda r: r["samples"][0]["row"].update(frames=9)
    ),
    "_index: damaged": lambda o: (o / "_index/manifest.parquet").write_bytes(b"PAR1 half"),
    "_index: [Errno 2]": lambda o: (o / "_index/index.json").unlink(),
    "_index/index.json: does not follow": lambda o: (o / "_index/index.json").write_text("{}"),
    "sha256 is": lambda o: edit_commit(o, 0, lambda r: r.update(sha256="0" * 64)),
    "recorded at byte 512": lambda o: edit_commit(o, 0, lambda r: r["samples"][0].update(offset=512)),
    "offset is": lambda o: edit_commit(o, 0, lambda r: r["samples"][0]["members"]["meta.json"].update(offset=1)),
    "in the tar but not in the commit": lambda o: edit_commit(
        o, 0, lambda r: r["samples"][0]["members"].pop("meta.json")
    ),
    "belongs to another key": lambda o: edit_commit(o, 0, lambda r: r["samples"][0].update(key="f" * 12 + "-0000")),
    "is not planned": lambda o: edit_commit(o, 0, lambda r: r["samples"][0].update(unit="e" * 64)),
    "_run.json: missing": lambda o: (o / "_run.json").unlink(),
    "expected generations": lambda o: (o / "_plan/g0000.parquet").rename(o / "_plan/g0003.parquet"),
}


@pytest.mark.parametrize("message", DAMAGE)
def test_each_damage_is_named(output, message):
    DAMAGE[message](output)
    found = problems(output)
    assert any(message in problem for problem in found), found


def test_a_key_that_appears_twice_is_found(output):
    record = json.loads((output / "_commits/000000.json").read_text())
    record |= {"number": 3, "shard": "metaworld-000003.tar"}
    (output / "_commits/000003.json").write_text(json.dumps(record))
    shutil.copy(output / "metaworld-000000.tar", output / "metaworld-000003.tar")
    assert any("key appears twice, first in metaworld-000000.tar" in p for p in problems(output))


def test_a_sample_that_breaks_the_schema_is_found(tmp_path):
    with Run.open(str(tmp_path), config={}) as run:
        run.extend([unit(0)])
        run.spool.put(unit(0), {k: v for k, v in members(unit(0).key).items() if k != "camera.npz"})
        run.finish()
    assert any("camera.npz: missing" in p for p in problems(tmp_path))


def test_repair_index_and_gc_put_right_what_can_be(output, capsys):
    expected = (output / "_index/manifest.parquet").read_bytes()
    (output / "_index/manifest.parquet").write_bytes(expected[:50])
    (output / "metaworld-000042.tar").write_bytes(b"half")
    (output / "_work").mkdir(exist_ok=True)
    (output / f"_work/{unit(1).unit}.tar").write_bytes(b"used")
    (output / "_work/stranger.tar").write_bytes(b"unplanned")
    assert main(["verify", str(output)]) == 1
    assert gc(str(output), dry_run=True).tars == ["metaworld-000042.tar"]
    assert main(["gc", str(output)]) == 0
    assert main(["verify", str(output), "--repair-index"]) == 0
    assert (output / "_index/manifest.parquet").read_bytes() == expected
    assert not list((output / "_work").iterdir())
    assert "verified: 5 samples in 3 shards" in capsys.readouterr().out


@pytest.mark.parametrize("order", ["commit", "key", "shuffle"])
def test_reshard_keeps_every_byte_of_every_sample(right, tmp_path, order):
    done = reshard(str(right), str(tmp_path / "new"), limits=ShardLimits(samples=4), order=order, seed=1)
    assert (done.committed, done.shards) == (COUNT, 2)
    old, new = open_dataset(right), open_dataset(tmp_path / "new")
    assert sorted(old.order) == sorted(new.order)
    assert (old.order == new.order) == (order != "shuffle")
    assert all(old.members(key) == new.members(key) for key in old)
    assert problems(tmp_path / "new") == []


def test_reshard_onto_itself_is_refused(right):
    with pytest.raises(ValueError, match="the source itself"):
        reshard(str(right), str(right), limits=ShardLimits())


# -------------------------------------------------------------------------------------------------------- commands


def run_json(capsys, *arguments) -> object:
    assert main([str(a) for a in arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_ls_json_has_one_flat_object_per_sample(right, capsys):
    rows = run_json(capsys, "ls", right, "--json")
    assert [row["key"] for row in rows] == [unit(i).key for i in range(COUNT)]
    assert rows[4]["shard"] == "metaworld-000002.tar"
    assert {k: rows[0][k] for k in ("frames", "height", "width", "subjects")} == {
        "frames": 5, "height": 16, "width": 24, "subjects": 1,
    }  # fmt: skip
    assert rows[0]["selfcheck_psnr_db"] == 0.5
    assert not any(isinstance(value, dict | list) for value in rows[0].values())


def test_info_and_verify_json(right, capsys):
    facts = run_json(capsys, "info", right, "--json")
    assert (facts["samples"], facts["shards"], facts["units"]["committed"]) == (COUNT, 3, COUNT)
    report = run_json(capsys, "verify", right, "--json")
    assert (report["ok"], report["samples"], report["problems"]) == (True, COUNT, [])


def test_text_output_and_the_default_output_folder(right, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["ls"]) == 1
    assert "no shards here" in capsys.readouterr().err
    shutil.copytree(right, tmp_path / "out")
    assert [main(["ls"]), main(["info"]), main(["verify"])] == [0, 0, 0]
    text = capsys.readouterr().out
    assert unit(3).key in text
    assert "verified: 5 samples in 3 shards" in text


def test_export_and_contact_sheet(right, tmp_path, capsys):
    from PIL import Image

    assert main(["export", str(right), unit(2).key, str(tmp_path / "one")]) == 0
    assert (tmp_path / "one" / "target.mp4").read_bytes() == members(unit(2).key, 2)["target.mp4"]
    for name in ("frame_0000.png", "masks_0004.png", "depth_0002.png"):
        assert Image.open(tmp_path / "one" / "pictures" / name).size == (24, 16)
    cloud = (tmp_path / "one" / "clouds" / "background_anchor.ply").read_bytes()
    assert cloud.startswith(b"ply\n")
    assert len(cloud) == cloud.index(b"end_header\n") + 11 + 50 * 15
    assert main(["contact-sheet", str(right), unit(2).key, "--to", str(tmp_path / "sheets")]) == 0
    assert (tmp_path / "sheets" / f"{unit(2).key}.png").exists()
    assert main(["export", str(right), "000000000002-0001", str(tmp_path)]) == 1
    assert "nearest: 000000000002-0000" in capsys.readouterr().err


def test_gc_where_no_run_is_says_so_and_makes_nothing(tmp_path, capsys):
    assert main(["gc", str(tmp_path / "nowhere")]) == 1
    assert "no output of a run here" in capsys.readouterr().err
    assert not (tmp_path / "nowhere").exists()
