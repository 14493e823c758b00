"""Commands for the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trecvit.cli.app import FILES, app


@app.command(rich_help_panel=FILES)
def push(
    folder: Annotated[Path, typer.Argument(help="A model's folder, or a finished run's.")],
    repository: Annotated[str, typer.Argument(metavar="REPO", help="owner/name on the Hugging Face Hub.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    only_write: Annotated[Path | None, typer.Option("--only-write", help="Write the files there; push none.")] = None,
) -> None:
    """Publish a model on the Hugging Face Hub, with a card of its measured figures. Log in first: hf auth login."""
    from trecvit.cli.outputs import check_folder
    from trecvit.hub import prepare
    from trecvit.hub import push as push_to_hub

    if only_write:
        check_folder("--only-write", only_write, empty=True)
        print(prepare(folder, repository, only_write))
        return
    print(push_to_hub(folder, repository, private=private))
