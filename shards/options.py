"""One way to declare a configuration field: a default and a sentence that says what it does."""

import dataclasses
from typing import Any


def option(default: Any, doc: str, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field with its documentation, read by Hydra, by the checks and by docs/configuration.md.

    `doc` states the unit and where the number comes from; `choices` lists the values a string may take.
    A list default is copied for every instance.
    """
    metadata = {"doc": doc, "choices": choices}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    if dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=type(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)
