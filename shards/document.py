"""docs/sample.md from the schema: `python -m shards.document > docs/sample.md` (`--check FILE` compares instead)."""

import sys

from shards import schema
from shards.options import page_command


def page() -> str:
    """The sample schema as Markdown."""
    conventions = (schema.__doc__ or "").split("Conventions, everywhere\n")[1].split("\n\nKeys")[0]
    lines = [
        "# The sample",
        "",
        "<!-- Made by `python -m shards.document`; edit shards/schema.py instead. -->",
        "",
        f"Schema version {schema.SCHEMA_VERSION}. One sample is the files of one key inside a WebDataset tar; any",
        "WebDataset reader can read it. A key is `<video id: 12 hex>-<clip: 4 digits>[-<view>]`. A sample without",
        "`target.mp4` is an inference request. Nothing is pickled.",
        "",
        "## Conventions",
        "",
        "```",
        *(line.removeprefix("    ") for line in conventions.splitlines()),
        "```",
        "",
        "## Members",
        "",
        "| member | content | required |",
        "|---|---|---|",
        *(f"| `{m.name}` | {m.doc} | {'yes' if m.required else 'no'} |" for m in schema.MEMBERS),
        "| `identity_00.png` ... | reference image of subject 1 ..., RGBA, transparent outside | one per subject |",
    ]
    for m in schema.MEMBERS:
        if m.arrays:
            lines += ["", f"### `{m.name}`", "", "| array | dtype | shape | meaning |", "|---|---|---|---|"]
            lines += [f"| `{name}` | {a.dtype} | [{', '.join(map(str, a.axes))}] | {a.doc} |" for name, a in m.arrays]
    lines += ["", "### `meta.json`", "", "| field | meaning |", "|---|---|"]
    lines += [f"| `{name}` | {field.doc} |" for name, field in schema.META.items()]
    lines += ["", "### Quality columns", "", "In `meta.json` under `quality`, and columns of the manifest.", ""]
    lines += ["| column | meaning |", "|---|---|", *(f"| `{n}` | {doc} |" for n, doc in schema.QUALITY.items())]
    lines += [
        "",
        "### 16-bit depth",
        "",
        "Code 0 is no value; code q in 1..65535 means `z = near * (far / near) ** ((q - 1) / 65534)` metres. `near`",
        "and `far` stand in `depth.npz` (`range`) and, for the condition videos, in `meta.json` under `depth_range`.",
        "See `shards/depth16.py`.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(page_command(sys.argv[1:], page(), "python -m shards.document"))
