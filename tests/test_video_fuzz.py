"""Damaged and hostile files: the outcome is frames or a VideoError, soon, and all files are closed.

Many more cases at once: `python tests/test_video_fuzz.py FIRST_SEED NUM_SEEDS`.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from video_fixtures import (
    FFV1,
    H264_B,
    HEVC,
    MJPEG,
    MPEG4,
    MPEG4_B,
    MPEGTS,
    RAW_H264,
    VP8,
    VP9,
    make_video,
    open_files,
    painted,
)

from trecvit.bench.usage import resident_bytes
from trecvit.errors import VideoError
from trecvit.video.decode import probe, read_frames, read_frames_at

NUM_FRAMES = 12
SEEDS_PER_KIND = 6


def make_seeds(folder: Path) -> dict[str, Path]:
    """One small sound source of each kind."""
    codecs = {
        "mp4": H264_B,
        "hevc": HEVC,
        "webm": VP9,
        "vp8": VP8,
        "avi": MPEG4,
        "avi-b": MPEG4_B,
        "mkv": FFV1,
        "mjpeg": MJPEG,
        "ts": MPEGTS,
        "raw": RAW_H264,
    }
    paths = {
        name: make_video(folder / name, codec, num_frames=NUM_FRAMES, size_px=(64, 48))
        for name, codec in codecs.items()
    }
    paths["npy"] = folder / "frames.npy"
    np.save(paths["npy"], np.stack([painted(index, 64, 48) for index in range(NUM_FRAMES)]))
    for suffix in (".png", ".jpg", ".bmp", ".webp"):
        paths[suffix] = folder / f"picture{suffix}"
        PIL.Image.fromarray(painted(3, 64, 48)).save(paths[suffix])
    return paths


def mutated(content: bytes, chance: random.Random) -> bytes:
    """The content with one kind of damage."""
    damaged = bytearray(content)
    kind = chance.choice(("bits", "header", "cut", "swap", "zeros", "repeat", "numbers"))
    if kind in ("bits", "header"):
        reach = min(len(damaged), 600) if kind == "header" else len(damaged)
        for _ in range(chance.choice((1, 3, 10, 40))):
            damaged[chance.randrange(reach)] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del damaged[chance.randrange(len(damaged)) :]
    elif kind == "swap":
        size = chance.randrange(1, max(2, len(damaged) // 4))
        first, second = sorted(chance.randrange(len(damaged) - size) for _ in range(2))
        damaged[first : first + size], damaged[second : second + size] = (
            damaged[second : second + size],
            damaged[first : first + size],
        )
    elif kind == "numbers":
        for _ in range(chance.choice((1, 4))):
            place = chance.randrange(max(1, min(len(damaged), 2000) - 4))
            damaged[place : place + 4] = chance.choice(
                (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x00", b"\x80\x00\x00\x00")
            )
    else:
        start = chance.randrange(len(damaged))
        piece = damaged[start : start + chance.randrange(1, 200)]
        damaged[start : start + len(piece)] = bytes(len(piece)) if kind == "zeros" else piece * 3
    return bytes(damaged)


def check_outcome(path: Path) -> str:
    """Reads in every way; returns "whole" or "refused"."""
    source = path if path.suffix not in (".png", ".jpg", ".bmp", ".webp") else path.parent
    outcomes = [
        outcome_of(attempt)
        for attempt in (
            lambda: probe(source),
            # Damage can claim any number of frames; a few hundred are enough.
            lambda: sum(1 for _ in islice(read_frames(source), 300)),
            lambda: next(read_frames(source, start_frame=7)),
            lambda: next(read_frames(source, start_s=0.3)),
            lambda: read_frames_at(source, [9, 2], short_side_px=16),
        )
    ]
    return outcomes[1]


def outcome_of(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except VideoError:
        return "refused"
    return "whole"


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return {
        name: path.read_bytes() + path.suffix.encode().rjust(8)
        for name, path in make_seeds(tmp_path_factory.mktemp("seeds")).items()
    }


@pytest.mark.slow
@pytest.mark.timeout(20)
@pytest.mark.parametrize("seed", range(SEEDS_PER_KIND))
@pytest.mark.parametrize(
    "name",
    ["mp4", "hevc", "webm", "vp8", "avi", "avi-b", "mkv", "mjpeg", "ts", "raw", "npy", ".png", ".jpg", ".bmp", ".webp"],
)
def test_damaged_files_give_frames_or_a_video_error(
    seeds: dict[str, bytes], tmp_path: Path, name: str, seed: int
) -> None:
    content, suffix = seeds[name][:-8], seeds[name][-8:].decode().strip()
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(mutated(content, random.Random(f"{name} {seed}")))
    before, before_bytes = open_files(), resident_bytes()
    check_outcome(path)
    assert open_files() == before
    assert resident_bytes() - before_bytes < 256e6  # enough for one decoder, not for 300 large frames


def main(first_seed: int, num_seeds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sources = make_seeds(Path(folder))
        target = Path(folder) / "damaged"
        target.mkdir()
        for name, source in sources.items():
            content = source.read_bytes()
            outcomes, slowest_s = {"whole": 0, "refused": 0}, 0.0
            for seed in range(first_seed, first_seed + num_seeds):
                path = target / f"damaged{source.suffix}"
                path.write_bytes(mutated(content, random.Random(f"{name} {seed}")))
                # Printed first, so that a crash of the process shows its cause.
                print(name, seed, file=sys.stderr, flush=True)
                start_s = time.perf_counter()
                outcomes[check_outcome(path)] += 1
                slowest_s = max(slowest_s, time.perf_counter() - start_s)
                path.unlink()
            print(f"{name}: {outcomes}, slowest {slowest_s:.2f} s", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
