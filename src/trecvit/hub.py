"""Publishing a model on the Hugging Face Hub, with a card of what was measured on it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # its HTTP client

from trecvit.errors import CheckpointError, ConfigError, DownloadError
from trecvit.model_card import Measured, model_card
from trecvit.pretrained import CONFIG_FILE
from trecvit.weights.load import load

_CARD = "README.md"
_METRICS = {  # keys of a result file: the Hub's type of metric, its name on the card
    "top1": ("accuracy", "top-1"),
    "top5": ("top_5_accuracy", "top-5"),
    "mean_class_accuracy": ("balanced_accuracy", "mean class accuracy"),
    "average_jaccard": ("average_jaccard", "average Jaccard"),
    "average_pts_within_thresh": ("average_pts_within_thresh", "δ-average"),
    "occlusion_accuracy": ("occlusion_accuracy", "occlusion accuracy"),
}
_PICTURES = ("curves.png", "evaluation/confusion.png")
_RESULT = "evaluation/result.json"


def prepare(folder: Path, repository: str, target: Path) -> Path:
    """Write a repository's files: weights, config, card and, of a run folder, its figures and pictures.

    Args:
        folder: A folder written by `save`, or a run folder with `model/` in it. Its README.md becomes the card, if it
            has one.
        repository: "owner/name" or "name".
        target: The new folder.

    Returns:
        The target.

    Raises:
        CheckpointError: The folder holds no model that `trecvit.load` reads.
    """
    run = folder if (folder / "model" / CONFIG_FILE).is_file() else None
    source = folder / "model" if run else folder
    if not (source / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{folder}: expected a model's folder, with a {CONFIG_FILE}, or a finished run's, with a folder model in it"
        )
    model = load(source, dtype="auto")
    target.mkdir(parents=True, exist_ok=True)
    pictures = []
    for name in _PICTURES if run else ():
        if (folder / name).is_file():
            pictures.append(Path(name).name)
            shutil.copyfile(folder / name, target / pictures[-1])
    own_card = next((place / _CARD for place in (source, folder) if (place / _CARD).is_file()), None)
    if own_card:
        shutil.copyfile(own_card, target / _CARD)
    else:
        results = _results(folder / _RESULT) if run else []
        card = model_card(
            type(model).__name__,
            model.description(),
            tags=model.hub_tags(),
            name=repository,
            results=results,
            pictures=pictures,
        )
        card.save(target / _CARD)
    model.save_pretrained(target)
    return target


def push(
    folder: Path, repository: str, *, private: bool = False, token: str | None = None, endpoint: str | None = None
) -> str:
    """Publish a model's folder or a finished run.

    Args:
        folder: See `prepare`.
        repository: "owner/name" or "name"; created if it does not exist.
        private: Whether a new repository is private.
        token: By default that of `hf auth login` or HF_TOKEN.
        endpoint: Address of the Hub, by default the public one or HF_ENDPOINT.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: See `prepare`.
        ConfigError: The repository's name is invalid.
        DownloadError: The Hub cannot be reached or refuses, such as without a token.
    """
    api = HfApi(token=token, endpoint=endpoint)
    with tempfile.TemporaryDirectory() as space:
        staged = prepare(folder, repository, Path(space) / "model")
        try:
            repository = api.create_repo(repository, private=private, exist_ok=True).repo_id
            return str(api.upload_folder(repo_id=repository, folder_path=staged, commit_message="Upload with trecvit"))
        except HFValidationError as error:
            raise ConfigError(f"REPO: expected owner/name, got {repository!r}; {error}") from error
        except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            hint = "; log in with `hf auth login` or set HF_TOKEN" if status in (401, 403) else ""
            reason = " ".join(str(error).split())
            raise DownloadError(f"{repository}: expected the Hub to accept the files, got: {reason}{hint}") from error


def _results(path: Path) -> list[Measured]:
    if not path.is_file():
        return []
    result: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    data = str(result.get("protocol", {}).get("data", "validation data"))
    dataset = Path(data).name or data
    return [Measured(*names, float(result[key]), dataset) for key, names in _METRICS.items() if key in result]
