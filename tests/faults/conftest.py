"""Lets the fault tests use the small samples of tests/shards and the small videos of tests/engine."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS / "shards"), str(TESTS / "engine" / "run"), str(TESTS / "engine" / "ingest")]
