"""What the pages name exists: files, modules and targets."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
TOP = {"engine", "trainer", "shards", "conf", "tests", "docs", ".ci"}
MADE = {"out", "samples", "bench", "runs"}  # written by the commands, not part of the repository


def exists(path: Path) -> bool:
    return path.exists() or any(path.parent.glob(path.name))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_page_names_only_what_exists(page):
    text = page.read_text()
    paths = {p.split("::")[0] for p in re.findall(r"[`\s(]([\w.-]+(?:/[\w.*-]+)+/?)", text) if p.split("/")[0] in TOP}
    links = {link.split("#")[0] for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text)} - {""}
    modules = {m.rstrip(".") for m in re.findall(r"-m ((?:engine|shards|trainer)[\w.]*)(?![\w.<])", text)}
    missing = [p for p in paths if not exists(ROOT / p)]
    missing += [link for link in links if not exists(page.parent / link)]
    missing += [m for m in modules if not exists(ROOT / f"{m.replace('.', '/')}.py") and not _package(m)]
    targets = re.findall(r"(?:^|[`\s])make ([a-z][a-z-]*)(?![\w-])", _code(text))
    missing += [f"make {t}" for t in targets if t not in TARGETS]
    assert not missing


def _package(module: str) -> bool:
    return (ROOT / module.replace(".", "/") / "__main__.py").is_file()


def _code(text: str) -> str:
    """What stands in backticks or is indented as code."""
    blocks = re.findall(r"```.*?```", text, re.S)
    spans = re.findall(r"`[^`\n]+`", re.sub(r"```.*?```", "", text, flags=re.S))
    return "\n".join([*blocks, *spans, *re.findall(r"^ {4}.*$", text, re.M)])
