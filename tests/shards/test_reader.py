"""The dataset and the stream: order, resume, worlds, workers, checksums, pairs."""

import itertools
import json
import multiprocessing
import os
import pickle
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_samples import members, tiny, unit, values

from shards.reader import BadSample, Loader, SampleStream, StateMismatch, open_dataset
from shards.run import Run, ShardLimits

COUNT = 11


def write(output, count: int = COUNT, limits=None, make=tiny, units=None) -> None:
    with Run.open(str(output), config={}, limits=limits or ShardLimits(samples=3)) as run:
        run.extend(units or [unit(i) for i in range(count)])
        for todo in run.todo():
            run.spool.put(todo, make(todo.key, int(todo.key[:12], 16)))
        run.finish()


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    write(folder)
    return folder


@pytest.fixture
def dataset(output):
    return open_dataset(output)


def keys(batches) -> list[list[str]]:
    return [[item["__key__"] for item in batch] for batch in batches]


def take(loader: Loader, count: int) -> list[list[str]]:
    return keys(itertools.islice(loader, count))


# --------------------------------------------------------------------------------------------------------- dataset


def test_samples_decode_lazily_to_what_was_written(tmp_path):
    write(tmp_path, 2, make=members)
    dataset = open_dataset(tmp_path)
    sample, expected = dataset[unit(1).key], values(unit(1).key, 1)
    assert set(sample) == set(expected)
    np.testing.assert_array_equal(sample["depth.npz"]["code"], expected["depth.npz"]["code"])
    np.testing.assert_array_equal(sample["condition_anchor_depth.mkv"], expected["condition_anchor_depth.mkv"])
    assert sample["meta.json"] == expected["meta.json"]
    assert sample.row["camera_jerk"] == 0.5
    assert dataset.members(unit(1).key) == members(unit(1).key, 1)
    assert dataset.members(unit(1).key, ["caption.txt", "absent.npz"]) == {"caption.txt": b"sample 1"}
    with pytest.raises(KeyError, match=r"has no nothing\.json"):
        sample["nothing.json"]
    again = pickle.loads(pickle.dumps(dataset))
    assert again[unit(0).key]["meta.json"]["key"] == unit(0).key


def test_an_unknown_key_names_its_nearest(dataset):
    with pytest.raises(KeyError, match="nearest: 000000000001-0000"):
        dataset["000000000001-0001"]


def test_no_output_here(tmp_path):
    with pytest.raises(FileNotFoundError, match="no shards here"):
        open_dataset(tmp_path / "nowhere")


def test_a_stale_or_half_index_is_not_believed(tmp_path):
    write(tmp_path, 4)
    expected = open_dataset(tmp_path)
    manifest = tmp_path / "_index" / "manifest.parquet"
    manifest.write_bytes(manifest.read_bytes()[:100])
    found = open_dataset(tmp_path)
    assert (found.order, found.manifest) == (expected.order, expected.manifest)
    write(tmp_path, 6)
    (tmp_path / "_index" / "index.json").unlink()
    assert len(open_dataset(tmp_path)) == 6


def flip(output, key: str) -> None:
    """Flip one bit of the sample's caption."""
    dataset = open_dataset(output)
    entry = dataset.entries(key)["caption.txt"]
    path = output / dataset.row(key)["shard"]
    data = bytearray(path.read_bytes())
    data[entry["offset"]] ^= 1
    path.write_bytes(data)


def test_checksums_catch_a_flipped_bit(tmp_path):
    write(tmp_path)
    flip(tmp_path, unit(4).key)
    for checksums in ("first", "always"):
        with pytest.raises(BadSample, match=r"000000000004-0000: caption\.txt.*python -m shards verify"):
            open_dataset(tmp_path, checksums=checksums).members(unit(4).key)
    assert open_dataset(tmp_path, checksums="off").members(unit(4).key)


# ---------------------------------------------------------------------------------------------------------- stream


def test_an_epoch_holds_every_sample_once_and_the_next_is_another_order(dataset):
    stream = SampleStream(dataset, seed=3)
    first, second = ([stream.keys(n)[0] for n in range(e * COUNT, (e + 1) * COUNT)] for e in (0, 1))
    assert sorted(first) == sorted(second) == sorted(dataset.order)
    assert first != second
    assert first != [SampleStream(dataset, seed=4).keys(n)[0] for n in range(COUNT)]


@settings(deadline=None, max_examples=30)
@given(
    worlds=st.lists(st.sampled_from([1, 2, 4, 5]), min_size=1, max_size=4),
    batch=st.integers(1, 3),
    steps=st.integers(1, 4),
)
def test_the_world_may_change_size_at_any_step(output, worlds, batch, steps):
    """Whatever worlds read one after the other, together they read the one global order without a gap or a repeat."""
    dataset, state, seen = open_dataset(output), None, []
    for world in worlds:
        loaders = [Loader(SampleStream(dataset, batch=batch, rank=r, world=world)) for r in range(world)]
        for loader in loaders:
            if state:
                loader.load_state_dict(json.loads(json.dumps(state)))
        by_rank = [take(loader, steps) for loader in loaders]
        seen += [key for step in zip(*by_rank, strict=True) for part in step for key in part]
        states = [loader.state_dict() for loader in loaders]
        assert all(s == states[0] for s in states)
        state = states[0]
    stream = SampleStream(dataset)
    assert seen == [stream.keys(n)[0] for n in range(len(seen))]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_equal_batches_per_rank_with_fewer_shards_than_ranks(tmp_path, world):
    write(tmp_path, 5, ShardLimits(samples=64))
    dataset = open_dataset(tmp_path)
    streams = [SampleStream(dataset, batch=2, rank=r, world=world, epochs=1) for r in range(world)]
    batches = [keys(Loader(stream)) for stream in streams]
    assert len({len(b) for b in batches}) == 1
    assert {key for rank in batches for batch in rank for key in batch} == set(dataset.order)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_workers_do_not_change_the_order_and_states_pass_between_them(dataset, workers):
    def loader(n):
        return Loader(SampleStream(dataset, batch=2, rank=1, world=2, members=["meta.json"]), workers=n)

    expected = take(loader(0), 9)
    first = loader(workers)
    assert take(first, 5) == expected[:5]
    second = loader(0)
    second.load_state_dict(first.state_dict())
    assert take(second, 2) == expected[5:7]
    third = loader(workers)
    third.load_state_dict(second.state_dict())
    assert take(third, 2) == expected[7:]


@pytest.mark.slow
def test_torchdata_keeps_the_stream_by_itself(dataset):
    from torchdata.stateful_dataloader import StatefulDataLoader

    from shards.torch_stream import TorchStream

    def loader():
        stream = SampleStream(dataset, batch=2, members=["meta.json"])
        return StatefulDataLoader(
            TorchStream(stream), batch_size=2, num_workers=2, collate_fn=list, multiprocessing_context="spawn"
        )

    expected = keys(itertools.islice(loader(), 6))
    first = loader()
    assert keys(itertools.islice(first, 3)) == expected[:3]
    second = loader()
    second.load_state_dict(first.state_dict())
    assert keys(itertools.islice(second, 3)) == expected[3:]


def _train(output: str, state_file: str, die_at: int | None, told) -> None:
    """A consumer that tells its samples to the pipe `told` (a queue would send them from a thread, too late for one
    who dies), saves the state after each step and is killed in the middle of one."""
    loader = Loader(SampleStream(open_dataset(output), batch=2, members=["meta.json"]))
    if os.path.exists(state_file):
        with open(state_file) as file:
            loader.load_state_dict(json.load(file)["state"])
    for step, batch in enumerate(loader):
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        told.send([item["__key__"] for item in batch])
        with open(f"{state_file}.new", "w") as file:
            json.dump({"state": loader.state_dict()}, file)
        os.replace(f"{state_file}.new", state_file)
        if die_at is None and step == 3:
            return


def test_killed_mid_epoch_it_goes_on_exactly(output, tmp_path):
    processes, seen = multiprocessing.get_context("forkserver"), []
    for die_at in (2, 1, None):
        listen, told = processes.Pipe(duplex=False)
        child = processes.Process(target=_train, args=(str(output), str(tmp_path / "state"), die_at, told))
        child.start()
        for _ in range(4 if die_at is None else die_at):
            assert listen.poll(60)
            seen += listen.recv()
        child.join(60)
        assert child.exitcode == (0 if die_at is None else -signal.SIGKILL)
    stream = SampleStream(open_dataset(output))
    assert seen == [stream.keys(n)[0] for n in range(14)]


def test_state_of_other_samples_or_seed_is_refused(tmp_path, dataset):
    write(tmp_path, 4)
    state = Loader(SampleStream(dataset)).state_dict()
    with pytest.raises(StateMismatch, match="manifest"):
        Loader(SampleStream(open_dataset(tmp_path))).load_state_dict(state)
    with pytest.raises(StateMismatch, match="seed 0, this stream 1"):
        Loader(SampleStream(dataset, seed=1)).load_state_dict(state)


def test_bad_samples_strict_skipped_and_capped(tmp_path):
    write(tmp_path)
    flip(tmp_path, unit(4).key)
    with pytest.raises(BadSample, match="000000000004"):
        keys(Loader(SampleStream(open_dataset(tmp_path), epochs=1)))
    stream = SampleStream(open_dataset(tmp_path), epochs=1, bad="skip")
    found = keys(Loader(stream))
    assert len(found) == COUNT
    assert [unit(4).key] not in found
    assert stream.bad_seen == 1
    assert found == keys(Loader(SampleStream(open_dataset(tmp_path), epochs=1, bad="skip")))  # the stand-in too
    flip(tmp_path, unit(5).key)
    with pytest.raises(BadSample, match="more than 1 bad"):
        keys(Loader(SampleStream(open_dataset(tmp_path), epochs=1, bad="skip", bad_cap=1)))


def paired(key: str, seed: int) -> dict[str, bytes]:
    from shards import codec

    sample = tiny(key, seed)
    meta = codec.decode("meta.json", sample["meta.json"])
    view = key.rpartition("-")[2] if key.count("-") == 2 else None
    meta["pair"] = {"id": key[:12], "view": view} if view else None
    return sample | {"meta.json": codec.encode("meta.json", meta)}


def test_pairs_stay_together(tmp_path):
    units = [unit(i, view) for view in ("b", "a") for i in range(3)] + [unit(9)]  # views lie in different shards
    write(tmp_path, make=paired, units=units)
    dataset = open_dataset(tmp_path)
    stream = SampleStream(dataset, group_pairs=True, epochs=1, members=["meta.json"])
    found = [tuple(view["__key__"] for view in item) for batch in Loader(stream) for item in batch]
    assert sorted(found) == sorted([*((unit(i, "a").key, unit(i, "b").key) for i in range(3)), (unit(9).key,)])
    assert dataset.pairs[unit(0, "a").key] == ("000000000000", "a")


def test_transform_sees_the_samples(dataset):
    stream = SampleStream(dataset, transform=lambda views: views[0]["meta.json"]["key"], epochs=1, shuffle=False)
    assert [item for batch in Loader(stream) for item in batch] == dataset.order
