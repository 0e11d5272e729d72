"""A stateful stream of samples for training: exact resume, any world size, any number of workers.

    dataset = open_dataset("s3://bucket/run")
    stream = SampleStream(dataset, seed=0, batch=2, rank=rank, world=world, members=["target.mp4", "meta.json"])
    loader = Loader(stream, workers=4)               # 0: in this process (a thread reads ahead), else torchdata
    loader.load_state_dict(state)                    # {epoch, consumed, seed, manifest}; free of placement
    for batch in loader:                             # a list of `batch` items, endless unless epochs=...
        ...; state = loader.state_dict()             # exact after every batch; equal on all ranks

An item is {member name: decoded value, "__key__": key}; with group_pairs=True the tuple of the views of one world.
Give `transform` to make something else of the tuple of `Sample`s.

Item number g (0, 1, 2, ... over all epochs) is permutation(seed, epoch, manifest)[g mod n]. A step of the whole world
takes batch * world numbers, so every rank gets equal batches, however many shards there are, and another world size
goes on where the last one stopped. With `epochs` the last step is filled up from the next epoch's order.
"""

import hashlib
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np

from shards.dataset import BadSample, Dataset, Sample, open_dataset
from shards.store import StorageError

__all__ = ["BadSample", "Dataset", "Loader", "Sample", "SampleStream", "StateMismatch", "open_dataset"]
log = logging.getLogger(__name__)


class StateMismatch(ValueError):
    """A saved state belongs to other samples or another seed."""


class SampleStream:
    """The items of one rank, in order: an iterable that torchdata's StatefulDataLoader can hold too.

    bad="strict" raises BadSample; bad="skip" puts another item, drawn from (seed, number), in the place of a bad one,
    up to `bad_cap` bad items in each process.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        seed: int = 0,
        batch: int = 1,
        rank: int = 0,
        world: int = 1,
        members: Sequence[str] | None = None,
        group_pairs: bool = False,
        transform: Callable[[tuple[Sample, ...]], Any] | None = None,
        epochs: int | None = None,
        shuffle: bool = True,
        bad: str = "strict",
        bad_cap: int = 10,
    ):
        if bad not in ("strict", "skip"):
            raise ValueError(f"bad: expected strict or skip, found {bad!r}")
        if not 0 <= rank < world or batch < 1:
            raise ValueError(
                f"expected 0 <= rank < world and batch >= 1, found rank {rank}, world {world}, batch {batch}"
            )
        self.dataset, self.seed, self.batch, self.rank, self.world = dataset, seed, batch, rank, world
        self.names, self.transform, self.epochs, self.shuffle = members, transform, epochs, shuffle
        self.group_pairs, self.bad, self.bad_cap, self.bad_seen = group_pairs, bad, bad_cap, 0
        self.items = dataset.groups() if group_pairs else [(key,) for key in dataset]
        if not self.items:
            raise ValueError(f"{dataset.store.url}: no committed sample to read")
        self.consumed = 0  # item numbers taken by the whole world before this stream's first batch
        self._given = 0  # items this process's iterator has given since then
        self._epoch, self._order = -1, np.empty(0, np.int64)

    # ------------------------------------------------------------------------------------------------------- order

    @property
    def step(self) -> int:
        """Item numbers that the whole world takes at each step."""
        return self.batch * self.world

    def keys(self, number: int) -> tuple[str, ...]:
        """Keys of item `number`: a function of (seed, epoch, manifest) alone."""
        epoch, place = divmod(number, len(self.items))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._permutation(epoch)
        return self.items[self._order[place]]

    def numbers(self, worker: int = 0, workers: int = 1) -> Iterator[int]:
        """Item numbers of this rank that `worker` of `workers` reads: every workers-th batch."""
        base, stop = self.consumed + worker * self.step, self._stop()
        while stop is None or base < stop:
            first = base + self.rank * self.batch
            yield from range(first, first + self.batch)
            base += workers * self.step

    def _permutation(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(len(self.items))
        seed = hashlib.sha256(f"{self.seed} {epoch} {self.dataset.manifest}".encode()).digest()
        return np.random.default_rng(np.frombuffer(seed, np.uint32)).permutation(len(self.items))

    def _stop(self) -> int | None:
        return None if self.epochs is None else self.epochs * len(self.items)

    # ----------------------------------------------------------------------------------------------------- reading

    def __iter__(self) -> Iterator[Any]:
        """Items of this process: all of the rank's, or those of the torch loader worker that runs here."""
        given, self._given = self._given, 0
        for number in islice(self.numbers(*_torch_worker()), given, None):
            item = self.read(number)
            given += 1
            self._given = given
            yield item

    def read(self, number: int) -> Any:
        """Item `number`, or its stand-in when it is bad and skipping is allowed."""
        for attempt in range(self.bad_cap + 2):
            draw = number if attempt == 0 else self._stand_in(number, attempt)
            try:
                return self._make(self.keys(draw))
            except (BadSample, FileNotFoundError, StorageError) as error:
                if self.bad == "strict":
                    raise
                self.bad_seen += 1
                if self.bad_seen > self.bad_cap:
                    raise BadSample(f"more than {self.bad_cap} bad items; the last one: {error}") from error
                log.warning("skipped a bad sample: %s", error)
        raise AssertionError("unreachable")

    def _make(self, keys: tuple[str, ...]) -> Any:
        if self.transform:
            return self.transform(tuple(self.dataset[key] for key in keys))
        views = tuple(self._decode(key) for key in keys)
        return views if self.group_pairs else views[0]

    def _decode(self, key: str) -> dict[str, Any]:
        data = self.dataset.members(key, self.names)
        return {"__key__": key} | {name: self.dataset.decode(key, name, raw) for name, raw in data.items()}

    def _stand_in(self, number: int, attempt: int) -> int:
        epoch = number // len(self.items)
        place = np.random.default_rng([self.seed, number, attempt]).integers(len(self.items))
        return epoch * len(self.items) + int(place)

    # ------------------------------------------------------------------------------------------------------- state

    def state(self, consumed: int) -> dict[str, Any]:
        """The placement-free state after the whole world took `consumed` item numbers."""
        epoch, place = divmod(consumed, len(self.items))
        return {"epoch": epoch, "consumed": place, "seed": self.seed, "manifest": self.dataset.manifest}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a placement-free state; StateMismatch when it belongs to other samples or another seed."""
        for name, mine in (("manifest", self.dataset.manifest), ("seed", self.seed)):
            if state[name] != mine:
                raise StateMismatch(
                    f"the saved state has {name} {state[name]}, this stream {mine}: the order of samples would change; "
                    "resume on the shards and the seed of the saved run, or start a new epoch without the state"
                )
        self.consumed = state["epoch"] * len(self.items) + state["consumed"]
        self._given = 0

    def state_dict(self) -> dict[str, Any]:
        """This process's state, as StatefulDataLoader keeps one per worker."""
        return self.state(self.consumed) | {"given": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.restore(state)
        self._given = state.get("given", 0)


class Loader:
    """Batches of a stream, with workers and a placement-free state. One pass goes on where the last one ended.

    workers=0 reads in this process, a thread `prefetch` items ahead; else torchdata's StatefulDataLoader with
    `prefetch` batches ahead in each worker. `collate` makes a batch of a list of items (default: the list).
    """

    def __init__(self, stream: SampleStream, *, workers: int = 0, prefetch: int = 2, collate: Callable = list):
        self.stream, self.workers, self.prefetch, self.collate = stream, workers, prefetch, collate

    def __iter__(self) -> Iterator[Any]:
        for batch in self._torch() if self.workers else self._plain():
            self.stream.consumed += self.stream.step
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """{epoch, consumed, seed, manifest} after the last batch that was given out; equal on every rank."""
        return self.stream.state(self.stream.consumed)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Call before iterating."""
        self.stream.restore(state)

    def _plain(self) -> Iterator[Any]:
        numbers = self.stream.numbers()
        with ThreadPoolExecutor(1, thread_name_prefix="reader") as pool:
            ahead = [pool.submit(self.stream.read, n) for n in islice(numbers, max(1, self.prefetch))]
            items = []
            while ahead:
                items.append(ahead.pop(0).result())
                ahead += [pool.submit(self.stream.read, n) for n in islice(numbers, 1)]
                if len(items) == self.stream.batch:
                    yield self.collate(items)
                    items = []

    def _torch(self) -> Iterator[Any]:
        from torchdata.stateful_dataloader import StatefulDataLoader

        from shards.torch_stream import TorchStream

        yield from StatefulDataLoader(
            TorchStream(self.stream),
            batch_size=self.stream.batch,
            num_workers=self.workers,
            prefetch_factor=max(1, self.prefetch),
            collate_fn=self.collate,
            multiprocessing_context="spawn",  # object-store clients do not survive a fork
        )


def _torch_worker() -> tuple[int, int]:
    """(worker, workers) of the torch loader worker this runs in; (0, 1) elsewhere."""
    if "torch.utils.data" not in sys.modules:
        return 0, 1
    info = sys.modules["torch.utils.data"].get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)
