"""Turn videos into shards: `python -m engine.unroll input=videos/ output=out/ perception=embedded runner=local`.

Every key stands in docs/configuration.md. Exit codes: 0 all, 2 some quarantined, 3 configuration, 5 storage,
6 the cluster was lost, 128 + n stopped by signal n.
"""

import sys

from engine.config import groups, load
from engine.run.drive import CONFIGURATION, drive
from shards.config import ConfigError


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        print("\n".join(f"{name}= {' | '.join(choices)}" for name, choices in groups().items()))
        return 0
    try:
        options = load(arguments)
    except ConfigError as error:
        print(f"configuration: {error}", file=sys.stderr)
        return CONFIGURATION
    return drive(options)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
