"""The sample stream as a torch IterableDataset. Imported only where torch is installed and asked for."""

from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset

from shards.reader import SampleStream


class TorchStream(IterableDataset):
    """What a DataLoader or torchdata's StatefulDataLoader takes; the state is the stream's."""

    def __init__(self, stream: SampleStream):
        self.stream = stream

    def __iter__(self) -> Iterator[Any]:
        return iter(self.stream)

    def state_dict(self) -> dict[str, Any]:
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stream.load_state_dict(state)
