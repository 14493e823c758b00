"""The documentation's site: `scripts/docs` builds it into `site/`, and fails on a broken link or an undocumented name.

Pages are the Markdown files of the repository as they are. What only a site needs is made here, in `build/docs`: pages
of the API from docstrings, tutorials as pages and notebooks, and links to files of the repository that have no page.
"""

from __future__ import annotations

import argparse
import base64
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import jupytext
import nbformat

import trecvit
from tools.tutorials import FOLDER as TUTORIALS

CONFIG = Path("docs/zensical.toml")
TARGET = Path("build/docs")

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Documents outside docs/ that become pages, beside the bundled models' cards."""

FILES = ("NOTICE", "LICENSE", "CITATION.cff", "CODE_OF_CONDUCT.md", "SECURITY.md")
"""Files that are linked and copied as they are."""

API: dict[str, tuple[str, ...]] = {
    "Models": ("create_model", "TRecViT", "Output", "ModelConfig", "PRESETS", "Preprocessing", "class_names"),
    "Streaming": ("State",),
    "Point tracking": (
        "LiveTracker", "PointTracker", "TrackerOutput", "track_both_ways", "TAPNext", "TrackerConfig", "TrackState",
        "LocalTracker", "LocalTrackerConfig", "LocalState", "ReadoutTracker", "ReadoutTrackerConfig",
        "PointReadoutConfig", "ReadoutState",
    ),
    "Weights": ("load", "convert"),
    "Faster inference": ("optimize", "export", "load_exported"),
    "Synthetic world": ("World", "WorldConfig"),
    "Errors": ("TRecViTError",),
}  # fmt: skip
"""Public names by page of the reference, in their order there; others follow by the room of their home."""

_PAGE_OF_ROOM = {"model": "Models", "config": "Models", "weights": "Weights", "accelerate": "Faster inference"}
_OTHER_ROOMS = "Running models"

MODULES: dict[str, tuple[str, ...]] = {
    "Videos": ("trecvit.video.decode", "trecvit.video.encode", "trecvit.video.transforms", "trecvit.video.sampling"),
    "Running models": ("trecvit.runtime.predict", "trecvit.runtime.stream", "trecvit.runtime.follow"),
    "Evaluation": ("trecvit.evaluate.scores", "trecvit.evaluate.tapvid"),
    "Hugging Face": ("trecvit.hf", "trecvit.hub"),
}
"""Modules with a page of the reference: those that the documents use."""

REPOSITORY = os.environ.get("GITHUB_REPOSITORY", "")
"""The public repository, "owner/name", as GitHub's workflows name it: the tutorials then link to Colab."""

NOTEBOOKS = "notebooks"
"""The branch with the notebooks, which docs.yml writes: Colab opens files of a branch."""

_COLAB = "https://colab.research.google.com/github"

_LANGUAGES = {
    "sh": re.compile(r"(?:[A-Z_]+=\S+ )*(?:trecvit|pip|python|scripts/\w+|curl|torchrun|git|hf)(?: |$)"),
    "python": re.compile(r"(?:import|from) "),
}
"""How blocks begin whose language the documents leave out, such as commands."""

_PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s#]+)\)")
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_LINKED = re.compile(r"(!?\[)([^\]]*)\]\(([^)\s]+)\)")


def stage(root: Path, target: Path, *, repository: str = REPOSITORY) -> None:
    """Write the sources of the site.

    Args:
        root: The checkout.
        target: A folder that is replaced.
        repository: See `REPOSITORY`.

    Raises:
        ValueError: A public name has no docstring.
    """
    shutil.rmtree(target, ignore_errors=True)
    if undocumented := sorted(undocumented_names()):
        raise ValueError(f"expected a docstring of every public name, got none of {', '.join(undocumented)}")
    docs = [path for path in sorted((root / "docs").rglob("*")) if path.is_file()]
    sources = {str(path.relative_to(root).as_posix()): path.relative_to(root / "docs").as_posix() for path in docs}
    del sources["docs/README.md"], sources[CONFIG.as_posix()]  # the navigation stands for it
    sources |= PAGES
    cards = sorted((root / "src/trecvit/weights").glob("*/README.md"))
    sources |= {card.relative_to(root).as_posix(): f"cards/{card.parent.name}.md" for card in cards}
    sources |= {name: name for name in FILES if (root / name).is_file()}
    sources |= {name: f"files/{name}" for name in sorted(_pictures(root, sources))}
    pages = dict(sources)
    pages["docs/README.md"] = "index.md"
    for name, page in sources.items():
        path = target / page
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".md"):
            text = relink((root / name).read_text(encoding="utf-8"), name, page, pages)
            path.write_text(mark_languages(text), encoding="utf-8")
        elif PurePosixPath(name).parent.as_posix() != TUTORIALS.as_posix():
            shutil.copyfile(root / name, path)
    for tutorial in sorted((root / TUTORIALS).glob("*.py")):
        _write_tutorial(tutorial, target / "tutorials", repository)
    (target / "api").mkdir()
    for title, entries in reference().items():
        (target / "api" / f"{_slug(title)}.md").write_text(_reference(title, entries), encoding="utf-8")


def _pictures(root: Path, sources: Mapping[str, str]) -> Iterator[str]:
    """Files outside docs/ that documents show, such as figures of `benchmarks/`."""
    for name in sources:
        text = (root / name).read_text(encoding="utf-8") if name.endswith(".md") else ""
        for address in _PICTURE.findall(text):
            path = _normal(PurePosixPath(name).parent / address) if "://" not in address else ""
            if path and path not in sources and (root / path).is_file():
                yield path


def reference() -> dict[str, dict[str, str]]:
    """The pages of the reference: for each title the dotted names to show, and where their docstrings are."""
    pages: dict[str, dict[str, str]] = {title: {} for title in (*API, *MODULES)}
    placed = {name: title for title, names in API.items() for name in names}
    for name in sorted(trecvit.__all__, key=lambda name: [*placed, name].index(name)):
        home = trecvit._HOMES[name]
        title = placed.get(name) or _PAGE_OF_ROOM.get(home.split(".")[1], _OTHER_ROOMS)
        pages[title][f"trecvit.{name}"] = f"{home}.{name}"
    for title, modules in MODULES.items():
        pages[title] |= {name: name for name in modules}
    return pages


def relink(text: str, source: str, page: str, pages: Mapping[str, str]) -> str:
    """Turn links between files of the repository into links between pages.

    A link to a file without a page becomes its name in code, since the site has no such file.

    Args:
        text: Markdown.
        source: Its path in the repository.
        page: Its path in the site's sources.
        pages: Path in the site's sources by path in the repository.
    """

    def replace(match: re.Match[str]) -> str:
        address, _, anchor = match[2].partition("#")
        if not address or "://" in address or address.startswith("mailto:"):
            return match[0]
        path = _normal(PurePosixPath(source).parent / address)
        if path not in pages:
            return f"{match[1]}{_UNPAGED}{path}{match[3]}"
        here = PurePosixPath(page).parent
        up = "../" * len(here.parts)
        linked = pages[path].removesuffix(".py") + ".md" if pages[path].endswith(".py") else pages[path]
        return f"{match[1]}{up}{linked}{'#' + anchor if anchor else ''}{match[3]}"

    text = "".join(
        part if part.startswith("```") else _LINK.sub(replace, part)
        for part in re.split(r"(```.*?```)", text, flags=re.DOTALL)
    )
    text = re.sub(rf"(?<!!)\[([^\]]*)\]\({_UNPAGED}([^)]*)\)", r"\1 (`\2`)", text)
    return text.replace(_UNPAGED, "")  # a picture that is missing: the check of links finds it


_UNPAGED = "unpaged:"


def mark_languages(text: str) -> str:
    """Name the language of blocks of code without one; the site then greys their comments and wraps long commands."""
    lines = text.split("\n")
    is_open = False
    for number, line in enumerate(lines[:-1]):
        if line.startswith("```"):
            is_open = not is_open
            found = (name for name, start in _LANGUAGES.items() if start.match(lines[number + 1]))
            if is_open and line == "```":
                lines[number] += next(found, "")
    return "\n".join(lines)


def navigation(config: str, target: Path) -> str:
    """Add the staged pages that the configuration does not list, at its marks, under their headings."""
    for mark, folder in (("pages", "."), ("tutorials", "tutorials"), ("notes", "notes")):
        others = [path for path in sorted((target / folder).glob("*.md")) if f'"{_page(path, target)}"' not in config]
        lines = [f"    {{ {_quoted(_heading(path))} = {_quoted(_page(path, target))} }},\n" for path in others]
        config = config.replace(f"    # other {mark}\n", "".join(lines))
    return config


def _page(path: Path, target: Path) -> str:
    return path.relative_to(target).as_posix()


def _heading(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    return text.partition("# ")[2].partition("\n")[0]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def undocumented_names() -> Iterator[str]:
    """Public names, and public attributes that their classes define, without a docstring."""
    for name in trecvit.__all__:
        value = getattr(trecvit, name)
        if not (inspect.isclass(value) or callable(value)):
            continue
        if not inspect.getdoc(value):
            yield name
        for attribute, member in vars(value).items() if inspect.isclass(value) else ():
            documented: Any = getattr(member, "__func__", member)
            is_code = inspect.isfunction(documented) or isinstance(member, property)
            if is_code and not attribute.startswith("_") and not inspect.getdoc(getattr(value, attribute)):
                yield f"{name}.{attribute}"


def broken_links(site: Path) -> list[str]:
    """List links and pictures of a built site whose page, file or anchor does not exist."""
    pages = {path: _Page.read(path) for path in sorted(site.rglob("*.html"))}
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are absolute
            continue
        for address in page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            place = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = place / "index.html" if place.is_dir() else place
            anchor = unquote(parts.fragment)
            if not place.exists():
                broken.append(f"{path.relative_to(site)}: {address}")
            elif anchor and place in pages and anchor not in pages[place].anchors:
                broken.append(f"{path.relative_to(site)}: {address} (no such heading)")
    return broken


class _Page(HTMLParser):
    """Links and anchors of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()

    @classmethod
    def read(cls, path: Path) -> _Page:
        page = cls()
        page.feed(path.read_text(encoding="utf-8"))
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := values.get(key))}
        link = values.get("href" if tag in ("a", "link") else "src")
        if link:
            self.links.append(link)


def _write_tutorial(path: Path, folder: Path, repository: str) -> None:
    """Write a tutorial as a page and as a notebook."""
    notebook: Any = jupytext.read(path)
    parts = []
    for cell in notebook.cells:
        parts.append(cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```")
    title, _, rest = "\n\n".join(parts).partition("\n")
    note = f"[Download as a notebook]({path.stem}.ipynb)"
    if repository:
        note += f" · [Open in Colab]({_COLAB}/{repository}/blob/{NOTEBOOKS}/{path.stem}.ipynb)"
    page = mark_languages(f"{title}\n\n{note}\n{rest}\n")
    (folder / f"{path.stem}.md").write_text(page, encoding="utf-8")
    nbformat.write(to_notebook(notebook, path, repository), folder / f"{path.stem}.ipynb")


def to_notebook(notebook: Any, path: Path, repository: str) -> Any:
    """Make a tutorial a file that is read anywhere: it holds its pictures, and its links have whole addresses.

    Args:
        notebook: The tutorial as jupytext reads it.
        path: Its path in the checkout.
        repository: As `REPOSITORY`. Without it a link becomes its text and the name of the file.
    """

    def replace(match: re.Match[str], cell: Any) -> str:
        start, text, address = match.groups()
        if "://" in address:
            return match[0]
        file = path.parent / address.partition("#")[0]
        if start == "![":
            kind = "image/png" if file.suffix == ".png" else "image/jpeg"
            content = base64.b64encode(file.read_bytes()).decode()
            cell.setdefault("attachments", {})[file.name] = {kind: content}
            return f"![{text}](attachment:{file.name})"
        source = file if file.is_file() else file.with_suffix(".py")  # a page of a tutorial
        name = f"docs/{_normal(PurePosixPath('tutorials') / address.partition('#')[0])}".replace(file.name, source.name)
        return f"[{text}](https://github.com/{repository}/blob/main/{name})" if repository else f"{text} (`{name}`)"

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = _LINKED.sub(partial(replace, cell=cell), cell.source)
    if repository:
        install = f'%pip install --quiet "trecvit[train,onnx,serve] @ git+https://github.com/{repository}"'
        notebook.cells.insert(1, nbformat.v4.new_code_cell(install))
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return notebook


def _reference(title: str, entries: Mapping[str, str]) -> str:
    """The page of some names, with an anchor for each public one beside that of its home."""
    parts = [f"# {title}"]
    for public, path in entries.items():
        anchor = "" if public == path else f'<a id="{public}"></a>\n\n'
        parts.append(f"{anchor}::: {path}\n    options:\n      show_root_full_path: {str(public == path).lower()}")
    return "\n\n".join(parts) + "\n"


def _slug(title: str) -> str:
    return title.lower().replace(" ", "_")


def _normal(path: PurePosixPath) -> str:
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="scripts/docs", description="Build the documentation's site, strictly.")
    parser.add_argument("--serve", action="store_true", help="serve it on this machine after building")
    serves = parser.parse_args().serve
    stage(Path(), TARGET)
    config = navigation(CONFIG.read_text(encoding="utf-8"), TARGET)
    (TARGET.parent / CONFIG.name).write_text(config, encoding="utf-8")
    command = [sys.executable, "-m", "zensical"]
    subprocess.run([*command, "build", "--strict", "--config-file", TARGET.parent / CONFIG.name], check=True)
    site = TARGET.parent / "site"
    if broken := broken_links(site):
        sys.exit("\n".join(["broken links:", *broken]))
    shutil.rmtree("site", ignore_errors=True)
    shutil.copytree(site, "site")
    print(Path("site/index.html"))
    if serves:
        subprocess.run([*command, "serve", "--config-file", TARGET.parent / CONFIG.name], check=True)


if __name__ == "__main__":
    main()
