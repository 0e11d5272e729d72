"""Lets the fault tests use the small samples of tests/shards."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "shards"))
