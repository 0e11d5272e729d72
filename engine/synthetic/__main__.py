"""`python -m engine.synthetic --output samples/ [--pairs]`: the sample videos with their exact truth."""

import argparse
from pathlib import Path

from engine.synthetic.dataset import PAIRS, SAMPLES, write_recordings


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m engine.synthetic", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("samples"), help="folder to write to")
    parser.add_argument("--pairs", action="store_true", help="add two agents' views of one world")
    parser.add_argument("--frames", type=int, default=81, help="length of each video, 1 + 4k")
    parser.add_argument("--height", type=int, default=480, help="pixels, even")
    parser.add_argument("--width", type=int, default=832, help="pixels, even")
    args = parser.parse_args()
    recordings = SAMPLES + (PAIRS if args.pairs else ())
    args.output.mkdir(parents=True, exist_ok=True)
    written = write_recordings(args.output, recordings, frames=args.frames, height=args.height, width=args.width)
    print(f"{written} written, {len(recordings) - written} were there: {args.output}")


if __name__ == "__main__":
    main()
