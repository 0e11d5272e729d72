"""One small rendered walk that the tests of this folder share."""

import pytest

from engine.synthetic import View, make_world, render

SMALL = {"frames": 17, "height": 120, "width": 208, "fps": 16.0}


@pytest.fixture(scope="session")
def walk() -> View:
    return render(make_world("street", "walk", seed=1, **SMALL))
