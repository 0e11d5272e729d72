"""Typed configurations out of `key=value` words, composed by Hydra from conf/*.yaml; what is typed wrong is refused.

    options = compose("train", TrainOptions, ["shards=out/", "model=tiny"], CONF, groups=("model", "experiment"))

The schema is a dataclass of `shards.options.option` fields; conf/<root>.yaml names it as `<root>_schema`.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """The command line asks for something that does not exist or cannot be. Exit code 3."""


def compose(
    root: str,
    schema: type,
    words: Sequence[str],
    conf: Path,
    *,
    groups: Sequence[str] = (),
    paths: Sequence[str] = (),
    page: str = "docs/configuration.md",
) -> Any:
    """An instance of `schema`. ConfigError names the key, what was expected and the nearest valid name.

    `groups` are folders of `conf` that a word may choose a file of. Values of `paths` may hold what Hydra's grammar
    takes for its own (spaces, commas, =, ${): they do not go through it.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    fields = {name: field for name, field, _ in leaves(schema())}
    _check_words(words, {*fields, *_nodes(schema())}, choices_of(conf, groups), page)
    raw = dict(word.split("=", 1) for word in words if word.split("=", 1)[0] in paths)
    ConfigStore.instance().store(name=f"{root}_schema", node=schema)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf), version_base="1.3", job_name=root):
            composed = compose(root, overrides=[w for w in words if w.split("=", 1)[0] not in paths])
        for name, path in raw.items():
            OmegaConf.update(composed, name, path.replace("${", "\\${"))
        options = OmegaConf.to_object(composed)
    except MissingMandatoryValue as error:
        name = error.full_key or ""
        raise ConfigError(f"{name}=... is missing: {fields[name].metadata['doc']}") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error)) from error
    check_choices(options)
    return options


def check_choices(options: Any) -> None:
    """ConfigError for a value outside the choices of its field."""
    for name, field, value in leaves(options):
        choices = field.metadata.get("choices") or ()
        if choices and value not in choices:
            raise ConfigError(f"{name}={value}: choose one of {', '.join(choices)}{nearest(str(value), choices)}")


def choices_of(conf: Path, groups: Iterable[str]) -> dict[str, list[str]]:
    """Group -> the names of its files."""
    return {name: sorted(p.stem for p in (conf / name).glob("*.yaml")) for name in groups}


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """(dotted name, field, value) of every field that is no dataclass itself."""
    for field in dataclasses.fields(node):
        value, name = getattr(node, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{name}.")
        else:
            yield name, field, value


def must(condition: bool, message: str) -> None:
    """ConfigError with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint for the end of a refusal, or nothing."""
    near = difflib.get_close_matches(word, list(choices), 1, 0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _check_words(words: Sequence[str], known: set[str], groups: dict[str, list[str]], page: str) -> None:
    """Refuse keys that no field has, before Hydra does so less helpfully."""
    known = known | set(groups)
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"{word!r}: key=value was expected (--help says more)")
        if key not in known:
            tails = {name.rpartition(".")[2]: name for name in known}
            near = difflib.get_close_matches(key, known, 1, 0.6)
            near = near or [tails[t] for t in difflib.get_close_matches(key.rpartition(".")[2], tails, 1, 0.7)]
            hint = f"; did you mean {near[0]}?" if near else f"; {page} lists every key"
            raise ConfigError(f"unknown key {key!r}{hint}")
        if key in groups and value not in groups[key]:
            raise ConfigError(f"{word}: choose one of {', '.join(groups[key])}{nearest(value, groups[key])}")


def _nodes(node: Any, path: str = "") -> Iterator[str]:
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            yield f"{path}{field.name}"
            yield from _nodes(value, f"{path}{field.name}.")


def _explain(error: Exception) -> str:
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    where = next((line.partition(":")[2].strip() for line in lines if line.startswith("full_key")), "")
    return f"{where}: {lines[0]}" if where else " ".join(lines)
