"""One decoding child for the tests of this folder."""

import pytest

from engine.ingest.decoder import DecodeProcess
from engine.ingest.options import DecodeOptions


@pytest.fixture(scope="module")
def process():
    with DecodeProcess(DecodeOptions()) as process:
        yield process
