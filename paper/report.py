"""Blocks of the results page: a row for every table and figure of the paper, and the measurements made here.

The page's prose is written by hand; `scripts/figures` fills in these blocks, each built from its result file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paper import efficiency, endless, memory, tables
from paper.results import read_result
from paper.sources import ITEMS, Item
from paper.tables import NOT_MEASURED, Build, on, table
from trecvit.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A measurement and its result file.

    Attributes:
        file: The result file, relative to the checkout.
        command: The command that writes it, unless the file holds its own.
        scale: Scale in a few words.
        details: Function from the file's content to more about the scale.
        draw: Function that draws pictures into a folder from the file's content alone.
    """

    file: str
    command: str
    scale: str
    details: Callable[[dict[str, Any]], str] | None = None
    draw: Callable[[dict[str, Any], Path], list[Path]] | None = None


_WORLD = "small models, synthetic world"
STUDIES = {
    "costs": Study(
        file="benchmarks/efficiency/efficiency.json",
        command="scripts/paper efficiency --to benchmarks/efficiency",
        scale="the paper's, counted",
        details=lambda content: f"One clip of {content['image_px']} × {content['image_px']} pixels, float32",
        draw=lambda content, folder: efficiency.draw([efficiency.Cost(**cost) for cost in content["costs"]], folder),
    ),
    "speed": Study(
        file="benchmarks/speed.json",
        command="trecvit bench speed --mode eager --mode compile --mode openvino --seconds 1 "
        "--save benchmarks/speed.json",
        scale="the paper's size, on a CPU",
    ),
    "memory": Study(
        file="benchmarks/memory/result.json",
        command="scripts/paper memory paper/recipes/memory_world.yaml --runs runs/memory_study --to benchmarks/memory",
        scale=_WORLD,
        draw=memory.draw_curves,
    ),
    "endless": Study(
        file="benchmarks/endless/result.json",
        command="scripts/paper endless --to benchmarks/endless",
        scale=_WORLD,
        draw=endless.draw,
    ),
}

TABLES: dict[str, tuple[str, Build]] = {
    "Table 3": ("costs", tables.inference_costs),
    "Table 6": ("memory", tables.recalled),
    "Figure 3": ("costs", tables.training_costs(tables.FIGURE_3)),
    "Figure 3, ratios": ("costs", tables.cost_ratios),
    "Figure 5": ("costs", tables.training_costs(tables.FIGURE_5)),
    "Figure 7": ("memory", tables.recalled_over_distance),
    "Past the trained length": ("memory", tables.recalled_beyond),
    "Past the trained length, named": ("endless", tables.named_beyond),
    "Section 1": ("speed", tables.streaming_speed),
}
"""Name of a block -> the study with its result, and the function that builds its text."""


def texts(root: Path) -> dict[str, str]:
    """Build the text of every block of the page.

    Args:
        root: The checkout, with `benchmarks/`.

    Raises:
        DataError: when a result file does not hold what its study writes.
    """
    contents = {name: read_result(root / study.file) for name, study in STUDIES.items()}
    blocks = {"shown": _shown(contents), "not shown": _not_shown()}
    for name, study in STUDIES.items():
        blocks[f"study: {name}"] = _provenance(name, contents[name]) + _pictures(root / study.file, root)
    for name, (study_name, build) in TABLES.items():
        content = contents[study_name]
        blocks[name] = f"{name}: {NOT_MEASURED}." if content is None else _built(study_name, build, content)
    return blocks


def draw_pictures(root: Path) -> list[Path]:
    """Redraw the pictures that need only a result file; those of frames and weights stay as they are."""
    drawn: list[Path] = []
    for study in STUDIES.values():
        path = root / study.file
        content = read_result(path)
        if study.draw is not None and content is not None:
            drawn += study.draw(content, path.parent)
    return drawn


def _built(study: str, build: Build, content: dict[str, Any]) -> str:
    try:
        return build(content)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{STUDIES[study].file}: expected the result of `{_command(study, None)}`, got {reason}; run it again"
        ) from error


def _command(study: str, content: dict[str, Any] | None) -> str:
    if content is not None and "command" in content:
        return str(content["command"])
    return STUDIES[study].command


def _when(content: dict[str, Any]) -> str:
    machine = content.get("machine")
    date = content.get("date") or (machine.get("date") if isinstance(machine, dict) else None)
    return str(date) if date else "Date not recorded"


def _provenance(study: str, content: dict[str, Any] | None) -> str:
    """Name the command, scale, machine and date of a result."""
    about = STUDIES[study]
    if content is None:
        return f"{NOT_MEASURED.capitalize()}: `{_command(study, None)}` writes {about.file}."
    sentences = [f"Measured by `{_command(study, content)}`."]
    if "scale" in content:
        sentences.append(f"{content['scale']}.")
    elif about.details is not None:
        sentences.append(f"{_built(study, about.details, content)}.")
    if isinstance(machine := content.get("machine"), dict):
        sentences.append(f"{_built(study, lambda content: on(content['machine']), content)}.")
    else:
        torch = content.get("torch") and f"torch {content['torch']}"
        sentences.append(f"{', '.join(part for part in (machine, torch, _when(content)) if part)}.")
    return " ".join(sentences) + f" [{about.file}](../{about.file})"


def _pictures(result: Path, root: Path) -> str:
    """Link the pictures beside a result file in a folder of its own."""
    if result.parent.parent == root or not result.exists():
        return ""
    pictures = sorted(result.parent.glob("*.png"))
    links = [f"![{path.stem.replace('_', ' ')}](../{path.relative_to(root).as_posix()})" for path in pictures]
    return "".join(f"\n\n{link}" for link in links)


def _shown(contents: dict[str, dict[str, Any] | None]) -> str:
    lines = [_row(item, contents) for item in ITEMS if item.shown]
    return table(("table or figure", "in the paper", "here", "scale", "date"), lines)


def _row(item: Item, contents: dict[str, dict[str, Any] | None]) -> list[str]:
    here = [item.here] if item.here else []
    scales, dates = [], []
    for study in item.studies:
        content = contents[study]
        here.append(f"[{study}]({item.anchor})" if content is not None else f"{study}: {NOT_MEASURED}")
        scales.append(STUDIES[study].scale)
        dates.append("" if content is None else _when(content))
    return [item.name, item.content, *("<br>".join(part for part in cell if part) for cell in (here, scales, dates))]


def _not_shown() -> str:
    lines = [(item.name, item.content, item.here) for item in ITEMS if not item.shown]
    return table(("table or figure", "in the paper", "why not"), lines)
