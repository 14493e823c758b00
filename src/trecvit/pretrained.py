"""A model's place on disk and on the Hub: a folder with `model.safetensors` and `config.json`. Knows no network.

config.json holds everything but the weights: the architecture, how frames become its input, the names of its classes
and where the weights come from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import safetensors
import safetensors.torch
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from torch import Tensor, nn

from trecvit.config import Architecture, ModelConfig, Preprocessing
from trecvit.errors import CheckpointError, ConfigError
from trecvit.files import write_json, write_whole

FORMAT = "trecvit-1"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
_MAX_CONFIG_BYTES = 16_000_000

_Model = TypeVar("_Model", bound=nn.Module)


class Pretrained(
    nn.Module,
    ModelHubMixin,
    library_name="trecvit",
    license="apache-2.0",
    tags=["trecvit"],
    repo_url="https://arxiv.org/abs/2412.14294",
):
    """A network with its description, and `save`, `load`, `save_pretrained`, `from_pretrained` and `push_to_hub`.

    Attributes:
        config: The architecture.
        preprocessing: How frames become the model's input.
        labels: Names of the classes, or empty.
        provenance: Where the weights come from, as free text by key ("source", "licence", "command" ...).
    """

    config_class: ClassVar[type[Architecture]] = ModelConfig

    def __init__(
        self,
        config: Architecture,
        *,
        preprocessing: Preprocessing | None = None,
        labels: Sequence[str] = (),
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.preprocessing = preprocessing or Preprocessing(image_size=config.image_size)
        self.provenance = dict(provenance or {})
        self.labels: tuple[str, ...] = ()
        if labels:
            self.relabel(labels)

    def relabel(self, labels: Sequence[str]) -> None:
        """Names the classes anew, one name for each.

        Raises:
            ConfigError: for another number of names.
        """
        if len(labels) != self.config.num_classes:
            raise ConfigError(f"expected {self.config.num_classes} labels, one per class, got {len(labels)}")
        self.labels = tuple(labels)

    def save(self, folder: str | Path) -> Path:
        """Writes `model.safetensors` and `config.json` into a folder, made if need be.

        Each file appears whole or not at all. The weights keep their dtype.
        """
        return self._save(Path(folder), self.state_dict())

    def _save(self, folder: Path, weights: Mapping[str, Tensor]) -> Path:
        check_path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().contiguous() for name, tensor in weights.items()}
        description = {
            "format": FORMAT,
            "architecture": type(self).__name__,
            "model": self.config.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "labels": list(self.labels),
            "provenance": self.provenance,
        }
        write_whole(folder / WEIGHTS_FILE, lambda part: safetensors.torch.save_file(tensors, part, {"format": "pt"}))
        write_json(folder / CONFIG_FILE, description, indent=2)
        return folder

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> Self:
        """Reads what `save` wrote.

        Args:
            folder: The folder.
            device: Where the weights go.
            dtype: What they become; by default float32, however they were stored.

        Raises:
            CheckpointError: when a file is missing, damaged or of another architecture, listing by name the tensors
                that are missing, left over or of another shape.
        """
        folder = Path(folder)
        description = read_description(folder)
        if description["architecture"] != cls.__name__:
            raise CheckpointError(
                f"{folder / CONFIG_FILE}: expected architecture {cls.__name__!r}, got {description['architecture']!r}"
            )
        try:
            config = cls.config_class.from_dict(description["model"])
            preprocessing = Preprocessing.from_dict(description["preprocessing"])
        except (ConfigError, TypeError) as exc:
            raise CheckpointError(f"{folder / CONFIG_FILE}: {exc}") from exc
        tensors = cls._read_weights(folder)
        if config.depth > len(tensors):
            raise CheckpointError(f"{folder}: {config.depth} layers cannot be made of {len(tensors)} tensors")
        # A model that names nothing takes no names; `read_description` has seen to it that there are none.
        named = {"labels": description["labels"]} if description["labels"] else {}
        return build(
            lambda: cls(
                config,
                preprocessing=preprocessing,
                provenance=description["provenance"],
                **named,
            ),
            tensors,
            source=str(folder / WEIGHTS_FILE),
            device=device,
            dtype=dtype,
        )

    @classmethod
    def _read_weights(cls, folder: Path) -> dict[str, Tensor]:
        return read_tensors(folder / WEIGHTS_FILE)

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        **_from_config_json: Any,
    ) -> Self:
        if Path(model_id).is_dir():
            return cls.load(model_id, device=device, dtype=dtype)
        folder = snapshot_download(
            model_id,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            allow_patterns=[WEIGHTS_FILE, CONFIG_FILE],
        )
        return cls.load(folder, device=device, dtype=dtype)


def build(
    factory: Callable[[], _Model],
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> _Model:
    """A module made without initialisation and given these weights, in evaluation mode.

    Args:
        factory: Makes the module.
        tensors: Its complete state dict.
        source: What an error names as the tensors' origin.
        device: Where the weights go.
        dtype: What they become; None is float32.

    Raises:
        CheckpointError: listing by name the tensors that are missing, left over or of another shape or kind.
    """
    try:
        with torch.device("meta"):
            model = factory()
    except (RuntimeError, OverflowError) as exc:
        raise CheckpointError(f"{source}: no model can have the sizes that its description asks for: {exc}") from exc
    expected = model.state_dict()
    missing = [f"{name} {tuple(tensor.shape)}" for name, tensor in expected.items() if name not in tensors]
    left_over = [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items() if name not in expected]
    other = [
        f"{name} {tensor.dtype} {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
        for name, tensor in tensors.items()
        if name in expected and (tensor.shape != expected[name].shape or not tensor.is_floating_point())
    ]
    if reasons := mismatch(missing, left_over, other):
        raise CheckpointError(f"{source}: the weights do not match the model; {reasons}")
    placed = {name: tensor.to(device=device, dtype=dtype or torch.float32) for name, tensor in tensors.items()}
    model.load_state_dict(placed, assign=True)
    return model.eval()


def mismatch(missing: list[str], left_over: list[str], other: list[str]) -> str:
    """Words for what keeps a set of arrays from being a model's weights, at most ten names of each kind."""
    kinds = (("missing", missing), ("left over", left_over), ("of another shape or type", other))
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:10])}{' …' if len(names) > 10 else ''}"
        for kind, names in kinds
        if names
    )


def check_path(folder: Path) -> None:
    """Refuses a path that is not UTF-8: safetensors could write weights there and never read them again.

    Raises:
        CheckpointError: Names the path.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in str(folder)):
        raise CheckpointError(f"expected a path in UTF-8 to write to, got {str(folder)!r}; rename it or give another")


def read_description(folder: str | Path) -> dict[str, Any]:
    """The checked content of a folder's config.json: format, architecture, model, preprocessing, labels, provenance.

    Raises:
        CheckpointError: when the file is missing or is not such a description.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes are too many for a model's description")
        description: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise CheckpointError(f"{path}: no such file; a model's folder holds {WEIGHTS_FILE} and {CONFIG_FILE}") from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise CheckpointError(f"{path}: expected a model's description as JSON: {exc}") from exc
    found = description.get("format") if isinstance(description, dict) else type(description).__name__
    if found != FORMAT:
        raise CheckpointError(f"{path}: expected the format {FORMAT!r}, got {found!r}")
    kinds = {"architecture": str, "model": dict, "preprocessing": dict, "labels": list, "provenance": dict}
    for key, kind in kinds.items():
        if not isinstance(description.get(key), kind):
            raise CheckpointError(f"{path}: expected {key!r} to be a {kind.__name__}, got {description.get(key)!r:.80}")
    if not all(isinstance(label, str) for label in description["labels"]):
        raise CheckpointError(f"{path}: expected every label to be text")
    num_classes = description["model"].get("num_classes")
    if description["labels"] and len(description["labels"]) != num_classes:
        raise CheckpointError(f"{path}: {len(description['labels'])} labels for {num_classes} classes")
    return dict(description)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        CheckpointError: when the file is missing or is none.
    """
    try:
        return safetensors.torch.load_file(path)
    except FileNotFoundError as exc:
        raise CheckpointError(f"{path}: no such file; a model's folder holds {WEIGHTS_FILE} and {CONFIG_FILE}") from exc
    except (OSError, safetensors.SafetensorError, ValueError) as exc:
        raise CheckpointError(f"{path}: expected a safetensors file: {exc}") from exc
