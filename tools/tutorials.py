"""The tutorials as programs: `python -m tools.tutorials [NAME ...]` runs them whole and renews their pictures.

A tutorial is a jupytext file in `docs/tutorials`: cells of Python and of Markdown. The site has each as a page and as
a notebook (`tools.site`); the tests run each with smaller numbers (`SMALL`).
"""

from __future__ import annotations

import argparse
import contextlib
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import PIL.Image

FOLDER = Path("docs/tutorials")
PICTURES = Path("docs/images")
ORDER = (
    "classify_a_folder",
    "stream_a_camera",
    "track_points_live",
    "finetune_your_classes",
    "evaluate_and_read_the_result",
    "train_the_tracker",
    "export_to_onnx",
    "serve",
)
"""The tutorials as the site lists them; a new one gets a row here and, for the tests, in `SMALL`."""

SMALL: dict[str, dict[str, str]] = {
    "classify_a_folder": {"NUM_VIDEOS": "1"},
    "stream_a_camera": {"MAX_FRAMES": "20"},
    "track_points_live": {"MAX_FRAMES": "10"},
    "finetune_your_classes": {"CLIPS": '{"train": 4, "val": 1}', "EPOCHS": "1"},
    "evaluate_and_read_the_result": {"PER_CLASS": "1"},
    "train_the_tracker": {"STEPS": "2", "BATCH": "1"},
    "export_to_onnx": {"MAX_FRAMES": "16"},
    "serve": {"MAX_FRAMES": "16"},
}
"""Constants of the tutorials and what the tests replace them by."""

_FRAMES = {
    "stream_a_camera": ("annotated.mp4", 13, "demo_frame.jpg"),
    "track_points_live": ("tracked.mp4", 13, "tracked_frame.jpg"),
}
_FILES = {
    "evaluate_and_read_the_result": ("results/confusion.png", "tutorial_confusion.png"),
    "export_to_onnx": ("classified.png", "classified_scenes.png"),
    "serve": ("served.png", "served_points.png"),
}


def run(path: Path, folder: Path, constants: Mapping[str, str] | None = None) -> None:
    """Run a tutorial in a folder.

    Args:
        path: The tutorial.
        folder: Where it writes.
        constants: Values to replace, as source text by name.

    Raises:
        ValueError: The tutorial has no such constant.
    """
    text = path.read_text(encoding="utf-8")
    for name, value in (constants or {}).items():
        assignment = f"{name} = {value}  "
        text, count = re.subn(rf"^{name} = [^#\n]*", assignment, text, count=1, flags=re.MULTILINE)
        if not count:
            raise ValueError(f"{path}: expected a constant {name}, got none")
    path = path.absolute()
    with contextlib.chdir(folder):
        exec(compile(text, str(path), "exec"), {"__name__": "__main__"})


def keep_picture(name: str, folder: Path, target: Path = PICTURES) -> None:
    """Copy the picture that a tutorial has made, a file or a frame of a video."""
    if name in _FRAMES:
        from trecvit.video.decode import read_frames  # imports PyTorch, which a tutorial shows to be absent

        video, index, picture = _FRAMES[name]
        image = next(frame.image for frame in read_frames(folder / video) if frame.index == index)
        PIL.Image.fromarray(image).save(target / picture, quality=85)
    if name in _FILES:
        file, picture = _FILES[name]
        with PIL.Image.open(folder / file) as image_file:
            image_file.convert("RGB").quantize(128).save(target / picture, optimize=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.tutorials", description="Run tutorials; renew pictures.")
    parser.add_argument("names", nargs="*", help=f"by default all: {', '.join(ORDER)}")
    for name in parser.parse_args().names or ORDER:
        with tempfile.TemporaryDirectory() as folder:
            run(FOLDER / f"{name}.py", Path(folder))
            keep_picture(name, Path(folder))


if __name__ == "__main__":
    main()
