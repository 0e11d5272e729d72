"""`engine.unroll` with poisoned perception, in its worker processes too: they import the main module, which is this."""

import sys

import poison

from engine.unroll import main

poison.install()

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
