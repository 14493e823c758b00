"""Deliberate damage to some files of a folder of videos, to test error handling: `scripts/damage FOLDER EVERY_NTH`.

Of the files in sorted order every nth is damaged, in turn by emptying it, by cutting it to half its length, and by
overwriting the third quarter with zeros.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path


def damage(folder: Path, every_nth: int) -> Iterator[Path]:
    """Damage files and yield their paths."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for index, path in enumerate(files[every_nth - 1 :: every_nth]):
        content = path.read_bytes()
        half, quarter = len(content) // 2, len(content) // 4
        damaged = (b"", content[:half], content[:half] + bytes(quarter) + content[half + quarter :])
        path.write_bytes(damaged[index % 3])
        yield path


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="scripts/damage", description="Damage every nth file of a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("every_nth", type=int)
    args = parser.parse_args()
    if not args.folder.is_dir() or args.every_nth < 1:
        parser.error(f"expected a folder and a number above 0, got {args.folder} and {args.every_nth}")
    for path in damage(args.folder, args.every_nth):
        print(path)


if __name__ == "__main__":
    main()
