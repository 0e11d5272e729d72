"""Weights: what is pinned, fetched, verified and missing.

    python -m engine.perception.weights [key=value ...] [NAME ...]   fetch what the configuration needs (make weights)
    python -m engine.perception.weights --check [...]                say what is missing or wrong (make weights CHECK=1)

Names of the catalogue, when given, are fetched instead of what the configuration needs.

Files lie in `<root>/<name>/<file>`. `<root>/weights.lock.json` records the revision, size and sha256 of every file
that was fetched or found. Where the catalogue pins a sha256 the file must have it; where it does not (small
configuration files), the first one seen is trusted, recorded, and later ones must be equal. Exit codes: 0 all there,
1 something is missing or wrong, 3 configuration.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from engine.options import option
from engine.perception.catalogue import CATALOGUE, File, Weights

LOCK = "weights.lock.json"
RANDOM = "random"  # the revision on record of weights made by engine.perception.random_weights
COMMAND = "make weights"


@dataclass
class WeightsOptions:
    root: str = option(
        "~/.cache/metaworld/weights",
        "folder of the weights; one that somebody filled by hand (`<root>/<name>/<file>`) works too",
    )
    mirror: str = option(
        "", "where to fetch from instead of the hub: a URL with the hub's layout, or a folder; HF_ENDPOINT works too"
    )
    random: bool = option(
        False, "take the random weights of engine.perception.random_weights, for speed measurements; refused otherwise"
    )
    accept_noncommercial: bool = option(False, "fetch weights whose licence forbids commercial use (CC-BY-NC)")


class WeightsError(RuntimeError):
    """Weights that are missing or not what was pinned. The message lists them and the command that mends it."""


@dataclass(frozen=True)
class Problem:
    """One file that cannot be used: `kind` is missing, size, sha256, revision or unrecorded."""

    file: str
    kind: str
    said: str


def folder(options: WeightsOptions, name: str) -> Path:
    """Where the files of catalogue entry `name` lie. Raises WeightsError for a name the catalogue does not have."""
    if name not in CATALOGUE:
        raise WeightsError(f"weights: no entry named {name!r}; the catalogue has: {', '.join(sorted(CATALOGUE))}")
    return Path(options.root).expanduser() / name


def check(options: WeightsOptions, names: Iterable[str], hashes: bool = True) -> list[Problem]:
    """What is missing or wrong. `hashes=False` looks at presence, size and revision only (the check before a run)."""
    root, problems = Path(options.root).expanduser(), []
    lock = _read_lock(root)
    for name in names:
        entry, at = CATALOGUE.get(name), folder(options, name)
        assert entry is not None
        for file in entry.files:
            record = lock.get(f"{name}/{file.name}")
            if options.random and record and record["revision"] == RANDOM:
                pinned, as_file = replace(entry, revision=RANDOM), File(file.name)
            else:
                pinned, as_file = entry, file
            said = _file_problem(pinned, as_file, at / file.name, record, hashes)
            if said:
                problems.append(Problem(f"{name}/{file.name}", *said))
    return problems


def require(options: WeightsOptions, names: Iterable[str]) -> None:
    """Raise WeightsError with the list and the command when a run's weights are not there. Reads no whole file."""
    names = list(names)
    problems = [p for p in check(options, names, hashes=False) if p.kind != "unrecorded"]
    if problems:
        lines = "\n".join(f"  {p.file}: {p.said}" for p in problems)
        words = list(dict.fromkeys(p.file.split("/")[0] for p in problems))
        if options.root != WeightsOptions().root:
            words.append(f"weights.root={options.root}")
        raise WeightsError(
            f"foundation perception needs weights that are not in {Path(options.root).expanduser()}:\n{lines}\n"
            f'Fetch them with: {COMMAND} OPTIONS="{" ".join(words)}"\n'
            "or put the files there; with CHECK=1 the same command says what is missing"
        )


def provenance(options: WeightsOptions, name: str) -> dict[str, str]:
    """What a sample's meta.json says of a model: repository, revision, licence, and the sha256 on record."""
    entry = CATALOGUE[name]
    lock = _read_lock(Path(options.root).expanduser())
    main = entry.files[0]
    record = lock.get(f"{name}/{main.name}", {})
    return {
        "repository": entry.repository,
        "revision": str(record.get("revision") or entry.revision or "unrecorded"),
        "sha256": str(record.get("sha256") or main.sha256 or "unrecorded"),
        "licence": entry.licence,
    }


def fetch(options: WeightsOptions, names: Iterable[str], say: Callable[[str], None] = print) -> None:
    """Bring the files of the named entries into the root, resuming half-fetched ones, and verify and record them.

    Raises WeightsError when a licence was not accepted, nothing can be reached, or a file is not the pinned one.
    """
    root = Path(options.root).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    names = list(names)
    for name in names:
        entry = CATALOGUE[name]
        if "NC" in entry.licence and not options.accept_noncommercial:
            raise WeightsError(
                f"weights: {name} is licensed {entry.licence}, which forbids commercial use; "
                "set weights.accept_noncommercial=true to fetch it, or choose another variant"
            )
    lock = _read_lock(root)
    for name in names:
        entry = CATALOGUE[name]
        for file in entry.files:
            key, path = f"{name}/{file.name}", root / name / file.name
            problem = _file_problem(entry, file, path, lock.get(key), hashes=True)
            revision = (lock.get(key) or {}).get("revision") or (entry.revision if file.sha256 else "by hand")
            if problem and problem[0] != "unrecorded":
                say(f"{key}: {problem[1]}; fetching")
                path.unlink(missing_ok=True)
                revision = _bring(options, entry, file.name, path)
            lock[key] = _record(entry, file, path, revision)
            _write_lock(root, lock)
            say(f"{key}: {lock[key]['bytes']} bytes, sha256 {lock[key]['sha256'][:12]}")


def table(options: WeightsOptions, names: Iterable[str]) -> str:
    """Name, size, licence and pinned revision of each entry, and whose checkpoint is trusted unseen, as text."""
    rows = []
    for name in names:
        entry = CATALOGUE[name]
        pinned = f"{entry.repository}@{(entry.revision or 'main')[:8]}"
        unseen = "" if entry.files[0].sha256 else "  (no sha256 known: the first file fetched is trusted and recorded)"
        rows.append(f"  {name:<34} {_megabytes(entry):>9}  {entry.licence:<14} {pinned}{unseen}")
    return "\n".join([f"weights in {Path(options.root).expanduser()}:", *rows])


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _file_problem(entry: Weights, file: File, path: Path, record: dict | None, hashes: bool) -> tuple[str, str] | None:
    if not path.is_file():
        return "missing", "missing"
    if record and record["revision"] == RANDOM and entry.revision != RANDOM:
        return "revision", "random weights (made for speed measurements), not published ones"
    found = path.stat().st_size
    expected = file.bytes or (record or {}).get("bytes")
    if expected is not None and found != expected:
        return "size", f"{expected} bytes were expected, found {found} (truncated, or another file)"
    if record and entry.revision and record["revision"] not in (entry.revision, "by hand"):
        return "revision", f"revision {entry.revision[:12]} is pinned, {record['revision'][:12]} is on record"
    if hashes:
        digest, wanted = sha256(path), file.sha256 or (record or {}).get("sha256")
        if wanted is not None and digest != wanted:
            return "sha256", f"sha256 {wanted[:12]}... was expected, found {digest[:12]}..."
    if record is None:
        return "unrecorded", "there, but never verified and recorded"
    return None


def _bring(options: WeightsOptions, entry: Weights, name: str, path: Path) -> str:
    """Copy or download one file to `path`; its revision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if options.mirror and "://" not in options.mirror:
        source = Path(options.mirror).expanduser()
        for candidate in (source / entry.repository / name, source / path.parent.name / name):
            if candidate.is_file():
                part = path.with_name(path.name + ".part")
                shutil.copyfile(candidate, part)
                os.replace(part, path)
                return entry.revision or "by hand"
        raise WeightsError(
            f"weights: mirror {source} has neither {entry.repository}/{name} nor {path.parent.name}/{name}"
        )
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    endpoint = options.mirror or os.environ.get("HF_ENDPOINT") or None
    try:
        revision = entry.revision
        if revision is None:  # nothing pinned: today's commit is taken and recorded
            revision = get_hf_file_metadata(hf_hub_url(entry.repository, name, endpoint=endpoint)).commit_hash
        hf_hub_download(entry.repository, name, revision=revision, local_dir=path.parent, endpoint=endpoint)
    except Exception as error:  # the client raises a dozen kinds; each means: not fetched
        raise WeightsError(
            f"weights: {entry.repository}/{name}@{entry.revision or 'main'} could not be fetched from "
            f"{endpoint or 'the hub'} ({type(error).__name__}: {str(error).splitlines()[0][:200]}). "
            "Set weights.mirror to a mirror or a folder, or run again: what was fetched is kept"
        ) from error
    return str(revision)


def _record(entry: Weights, file: File, path: Path, revision: str | None) -> dict:
    digest = sha256(path)
    found = path.stat().st_size
    if (file.sha256 and digest != file.sha256) or (file.bytes and found != file.bytes):
        path.unlink()
        raise WeightsError(
            f"weights: {path.parent.name}/{file.name} is not the pinned file (expected {file.bytes} bytes, sha256 "
            f"{file.sha256}; found {found} bytes, {digest}); it was removed. Is the mirror right?"
        )
    return {"repository": entry.repository, "revision": revision or "by hand", "bytes": found, "sha256": digest}


def _read_lock(root: Path) -> dict[str, dict]:
    path = root / LOCK
    return json.loads(path.read_text()) if path.is_file() else {}


def _write_lock(root: Path, lock: dict[str, dict]) -> None:
    part = root / (LOCK + ".part")
    part.write_text(json.dumps(lock, indent=1, sort_keys=True) + "\n")
    os.replace(part, root / LOCK)


def _megabytes(entry: Weights) -> str:
    known = [f.bytes for f in entry.files if f.bytes]
    return f"{sum(known) / 1e6:.0f} MB" if known else "unknown"


def main(arguments: list[str] | None = None) -> int:
    from engine.perception.foundation import FoundationOptions, from_dotlist, weight_names

    parser = argparse.ArgumentParser(prog="python -m engine.perception.weights", description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="only say what is missing or wrong")
    parser.add_argument(
        "options", nargs="*", help="key=value of the foundation perception, e.g. moge.variant=vits, or names to fetch"
    )
    given = parser.parse_args(arguments)
    try:
        options: FoundationOptions = from_dotlist([word for word in given.options if "=" in word])
        names = [word for word in given.options if "=" not in word] or weight_names(options)
        for name in names:
            folder(options.weights, name)
    except (ValueError, WeightsError) as error:
        print(error, file=sys.stderr)
        return 3
    print(table(options.weights, names))
    try:
        if not given.check:
            fetch(options.weights, names)
        problems = [
            p for p in check(options.weights, names, hashes=given.check) if given.check or p.kind != "unrecorded"
        ]
    except WeightsError as error:
        print(error, file=sys.stderr)
        return 1
    for problem in problems:
        print(f"  {problem.file}: {problem.said}")
    wrong = [p for p in problems if p.kind != "unrecorded"]
    print(f"{len(wrong)} missing or wrong; fetch with: {COMMAND}" if wrong else "all there")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
