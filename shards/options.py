"""One way to declare a configuration field, a default and a sentence that says what it does, and its page in docs/."""

import dataclasses
import sys
from pathlib import Path
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


def options_tables(title: str, node: Any, path: str, doc: str) -> list[str]:
    """Lines of Markdown: one section with a table per dataclass of options, nested ones after their parent."""
    fields = dataclasses.fields(node)
    plain = [f for f in fields if not dataclasses.is_dataclass(getattr(node, f.name))]
    lines = ["", f"## {title}", "", f"{doc[:1].upper()}{doc[1:]}."]
    if plain:
        lines += ["", "| key | default | meaning |", "|---|---|---|"]
    for f in plain:
        value, text = getattr(node, f.name), f.metadata.get("doc", "").replace("|", "\\|")
        choices = f.metadata.get("choices") or ()
        text += f" (one of {', '.join(f'`{c}`' for c in choices)})" if choices else ""
        lines.append(f"| `{path}{f.name}` | {_show(value)} | {text} |")
    for f in fields:
        value = getattr(node, f.name)
        if dataclasses.is_dataclass(value):
            lines += options_tables(f"`{path}{f.name}`", value, f"{path}{f.name}.", f.metadata.get("doc", ""))
    return lines


def page_command(arguments: list[str], text: str, command: str) -> int:
    """What a module that makes a page does when run: print it, or compare (`--check FILE`). Returns the exit code."""
    if arguments[:1] != ["--check"]:
        sys.stdout.write(text)
        return 0
    if Path(arguments[1]).is_file() and Path(arguments[1]).read_text() == text:
        return 0
    print(f"{arguments[1]} is out of date; run: {command} > {arguments[1]}", file=sys.stderr)
    return 1


def _show(value: Any) -> str:
    if value is None or value == "":
        return "`null`" if value is None else "empty"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`[{','.join(map(str, value))}]`" if isinstance(value, list) else f"`{value}`"
