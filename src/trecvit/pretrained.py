"""Saved models, on disk and on the Hub: a folder with `model.safetensors` and `config.json`, for any architecture.

config.json holds everything but the weights: architecture, preprocessing, class names and provenance.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import safetensors
import safetensors.torch
import torch
from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from torch import Tensor, nn

from trecvit.config import Architecture, ModelConfig, Preprocessing, nearest
from trecvit.errors import CheckpointError, ConfigError
from trecvit.files import write_json, write_whole
from trecvit.labels import check_labels
from trecvit.model_card import model_card
from trecvit.processes import usable_device
from trecvit.quantised import dequantise, quantise

FORMAT = "trecvit-1"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
PROCESSOR_FILE = "video_preprocessor_config.json"  # transformers' name
PROCESSOR_TYPE = "TRecViTVideoProcessor"  # in `trecvit.hf`
_MAX_CONFIG_BYTES = 16_000_000

Dtype = torch.dtype | str | None
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_HEAD_ARGUMENTS_ELSEWHERE = {"num_labels", "labels", "id2label", "label2id", "ignore_mismatched_sizes", "config"}

Labels = Iterable[Any]  # names that `trecvit.labels.check_labels` accepts

_Model = TypeVar("_Model", bound=nn.Module)


class Pretrained(
    nn.Module,
    ModelHubMixin,
    library_name="trecvit",
    tags=["trecvit"],
    repo_url="https://arxiv.org/abs/2412.14294",
):
    """Base of all models: `save`, `load`, `save_pretrained`, `from_pretrained` and `push_to_hub`.

    Attributes:
        config: The architecture.
        preprocessing: Preparation of frames as the model's input.
        provenance: Origin of the weights, as free text by key ("source", "licence", "command" ...).
    """

    config_class: ClassVar[type[Architecture]] = ModelConfig
    _hub_files: ClassVar[tuple[str, ...]] = (WEIGHTS_FILE, CONFIG_FILE)  # files to download of a repository
    _transformers_keys: ClassVar[dict[str, Any]] = {}  # of config.json, for `trecvit.hf`

    def __init__(
        self,
        config: Architecture,
        *,
        preprocessing: Preprocessing | None = None,
        labels: Labels = (),
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.preprocessing = preprocessing or Preprocessing(image_size=config.image_size)
        self.provenance = dict(provenance or {})
        self._labels: tuple[str, ...] = ()
        self.labels = check_labels(labels)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the classes in the order of their indices, or empty; assignment calls `relabel`."""
        return self._labels

    @labels.setter
    def labels(self, labels: Labels) -> None:
        self.relabel(labels)

    def relabel(self, labels: Labels) -> None:
        """Replace the class names: one for each class, or none.

        Args:
            labels: Names in the order of the classes, or `{0: name, ...}`, see `trecvit.labels.check_labels`.

        Raises:
            ConfigError: unless there are as many names as classes, and for empty, duplicate or unordered names.
        """
        names = check_labels(labels)
        config = self.current_config()
        if names and len(names) != config.num_classes:
            raise ConfigError(f"expected {config.num_classes} labels, one per class, got {len(names)}")
        self.config, self._labels = config, names

    def current_config(self) -> Architecture:
        """Return `config` with the number of classes of the present head, which may have been replaced."""
        return self.config

    def description(self) -> dict[str, Any]:
        """Describe the model as plain JSON values: architecture, preprocessing, labels and provenance.

        Class names of a head that has been replaced are left out, with a warning.
        """
        config, labels = self.current_config(), self.labels
        if labels and len(labels) != config.num_classes:
            warnings.warn(
                f"the model has {config.num_classes} classes and {len(labels)} labels of its former head, which are "
                "not saved; call model.relabel(names) before saving",
                stacklevel=3,
            )
            labels = ()
        return {
            "model": config.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "labels": list(labels),
            "provenance": self.provenance,
        }

    def save(self, folder: str | Path, *, int8_step: float = 0.0) -> Path:
        """Write `model.safetensors` and `config.json` into a folder, created if needed.

        Each file is written atomically. The weights keep their dtype. A replaced head is saved with its number of
        classes; all other changes of the architecture are refused, because `load` could not rebuild them.

        Args:
            folder: The folder, created if needed.
            int8_step: Above 0: matrices are stored in 8 bits, a quarter of the bytes, see
                `trecvit.quantised.quantise`.

        Raises:
            CheckpointError: before anything is written, with the weights or modules that the model's architecture does
                not have.
        """
        weights = self.state_dict()
        self._check_can_be_loaded(weights, Path(folder))
        return self._save(Path(folder), quantise(weights, step=int8_step) if int8_step else weights)

    def _check_can_be_loaded(self, weights: Mapping[str, Tensor], folder: Path) -> None:
        """Raise CheckpointError unless a model built from the description has these weights and modules."""
        # Tensor subclasses are shards, or quantised.
        subclasses = [name for name, tensor in weights.items() if type(tensor) not in (Tensor, nn.Parameter)]
        empty = [name for name, tensor in weights.items() if tensor.is_meta]
        if subclasses or empty:
            reason = (
                f"{subclasses[0]} is a {type(weights[subclasses[0]]).__name__}"
                if subclasses
                else f"{empty[0]} has no values"
            )
            raise CheckpointError(f"{folder}: not saved: expected plain tensors as weights, but {reason}")
        with torch.device("meta"):
            rebuilt = type(self)(self.current_config(), preprocessing=self.preprocessing, provenance=self.provenance)
        modules = dict(self.named_modules())
        replaced = [
            f"{name} ({type(modules[name]).__name__} instead of {type(module).__name__})"
            for name, module in rebuilt.named_modules()
            # A plain nn.Linear may stand for our Linear, which computes the same.
            if name in modules and not issubclass(type(module), type(modules[name]))
        ]
        reasons = _difference(weights, rebuilt.state_dict())
        if replaced:
            reasons = "; ".join([f"{len(replaced)} replaced: {', '.join(replaced[:10])}", *filter(None, [reasons])])
        if reasons:
            raise CheckpointError(
                f"{folder}: not saved: expected the weights and modules of the model's config, or another number of "
                f"classes in head.classifier, got others, which could not be loaded again; {reasons}; remove "
                "parametrisations, merge adapters, or save model.state_dict() with torch.save"
            )

    def _save(self, folder: Path, weights: Mapping[str, Tensor]) -> Path:
        check_path(folder)
        description = {"format": FORMAT, "architecture": type(self).__name__, **self.description()}
        description |= self._transformers_keys
        _check_description(description, folder)
        tensors = _unshared(weights)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / WEIGHTS_FILE, lambda part: safetensors.torch.save_file(tensors, part, {"format": "pt"}))
        write_json(folder / CONFIG_FILE, description, indent=2)
        return folder

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device | str = "cpu", dtype: Dtype = None) -> Self:
        """Load a folder that `save` wrote.

        Args:
            folder: The folder.
            device: Device of the weights.
            dtype: Dtype of the weights, as torch.dtype or by name; by default float32, whatever dtype they were stored
                in. "auto" keeps the stored one.

        Raises:
            ConfigError: for a device that is not available and for a dtype that is not floating-point.
            CheckpointError: when a file is missing, damaged or of another architecture, with the names of tensors that
                are missing, unexpected or of another shape.
        """
        folder, device, dtype = Path(folder), usable_device(device), as_dtype(dtype)
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
            raise CheckpointError(f"{folder}: expected tensors of {config.depth} layers, got {len(tensors)} tensors")
        model = build(
            lambda: cls(config, preprocessing=preprocessing, provenance=description["provenance"]),
            tensors,
            source=str(folder / WEIGHTS_FILE),
            device=device,
            dtype=dtype,
        )
        # Unchecked: earlier releases saved names that `relabel` refuses, such as duplicates.
        model._labels = tuple(description["labels"])
        return model

    @classmethod
    def _read_weights(cls, folder: Path) -> dict[str, Tensor]:
        return read_tensors(folder / WEIGHTS_FILE)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        config: object = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """`save`, and write what others read: a classifier's processor, and a model card unless the folder has one.

        Args:
            save_directory: The folder.
            config: Refused: the model's own is saved.
            repo_id: Repository to push to, by default the folder's name.
            push_to_hub: Whether to push the folder to the Hub.
            model_card_kwargs: Fields of the model card.
            push_to_hub_kwargs: Other arguments of `push_to_hub`, only with `push_to_hub=True`.

        Returns:
            The URL of the commit, or None.

        Raises:
            TypeError: for an argument that would be ignored.
        """
        where = f"{type(self).__name__}.save_pretrained"
        if config is not None:
            raise TypeError(f"{where}: expected no config, because the model's own is saved, got {config!r:.80}")
        for_hub = [*inspect.signature(self.push_to_hub).parameters]
        accepted = ("save_directory", "repo_id", "push_to_hub", "model_card_kwargs")
        for name in push_to_hub_kwargs:
            if name not in for_hub:
                raise TypeError(_unexpected(where, name, (*accepted, *for_hub)))
        only_for_push = [*push_to_hub_kwargs, *(["repo_id"] if repo_id is not None else [])]
        if only_for_push and not push_to_hub:
            raise TypeError(f"{where}: expected {only_for_push[0]!r} only with push_to_hub=True, which alone reads it")
        folder = self.save(save_directory)
        if self._transformers_keys:
            processor = {"video_processor_type": PROCESSOR_TYPE, "preprocessing": self.preprocessing.to_dict()}
            write_json(folder / PROCESSOR_FILE, processor, indent=2)
        if not (folder / "README.md").exists():
            self.generate_model_card(**(model_card_kwargs or {})).save(folder / "README.md")
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or folder.name, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs)

    def generate_model_card(self, **fields: Any) -> ModelCard:
        """Write the model's card.

        Args:
            fields: Those of `trecvit.model_card.model_card`: `name`, `results`, `pictures`.
        """
        return model_card(type(self).__name__, self.description(), tags=self.hub_tags(), **fields)

    @classmethod
    def hub_tags(cls) -> list[str]:
        """Tags for the Hub's search."""
        return list(cls._hub_mixin_info.model_card_data.tags or [])

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        device: torch.device | str = "cpu",
        dtype: Dtype = None,
        torch_dtype: Dtype = None,
        **unknown: Any,
    ) -> Self:
        """`load` from a folder, or from a repository of the Hugging Face Hub.

        Args:
            pretrained_model_name_or_path: The folder, or the repository's "owner/name".
            revision: Branch, tag or commit of the repository.
            cache_dir: Cache of downloads, by default the Hub's.
            force_download: Whether to download cached files again.
            local_files_only: Whether to use cached files only.
            token: For private repositories; by default that of `hf auth login`.
            device: Device of the weights.
            dtype: Dtype of the weights, see `load`.
            torch_dtype: The same under transformers' former name.

        Raises:
            TypeError: for all other arguments, also fields of the model, which config.json determines.
            ConfigError: for an unknown device or dtype, and for a revision of a folder.
            CheckpointError: see `load`.
        """
        _refuse_arguments(f"{cls.__name__}.from_pretrained", unknown)
        dtype, alias = as_dtype(dtype), as_dtype(torch_dtype)
        if None not in (dtype, alias) and dtype != alias:
            raise ConfigError(f"expected the same as dtype and torch_dtype, its other name, got {dtype} and {alias}")
        source = str(pretrained_model_name_or_path)
        if not Path(source).is_dir():
            source = snapshot_download(
                source,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=list(cls._hub_files),
            )
        elif revision is not None:
            raise ConfigError(f"{source}: expected no revision for a folder, got {revision!r}")
        return cls.load(source, device=device, dtype=alias if dtype is None else dtype)


def build(
    factory: Callable[[], _Model],
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    device: torch.device | str = "cpu",
    dtype: Dtype = None,
) -> _Model:
    """Build a module without initialisation and assign its weights, in evaluation mode.

    Args:
        factory: Returns the module.
        tensors: Its complete state dict.
        source: Origin of the tensors, for errors.
        device: Device of the weights.
        dtype: Dtype of the weights, see `as_dtype`; None is float32.

    Raises:
        CheckpointError: with the names of tensors that are missing, unexpected or of another shape or kind.
    """
    try:
        with torch.device("meta"):
            model = factory()
    except (RuntimeError, OverflowError) as exc:
        raise CheckpointError(f"{source}: no model can have the sizes in its config: {exc}") from exc
    if reasons := _difference(tensors, model.state_dict()):
        raise CheckpointError(f"{source}: the weights do not match the model; {reasons}")
    target = as_dtype(dtype) or torch.float32
    weights = {
        name: tensor.to(device=device, dtype=tensor.dtype if isinstance(target, str) else target)
        for name, tensor in tensors.items()
    }
    model.load_state_dict(weights, assign=True)
    return model.eval()


def as_dtype(dtype: Dtype) -> torch.dtype | Literal["auto"] | None:
    """Convert a dtype's name ("float16", "torch.bfloat16") to a torch.dtype; "auto" and None stay.

    Raises:
        ConfigError: for all but the floating-point types that models compute in.
    """
    by_name = {str(item).removeprefix("torch."): item for item in _DTYPES}
    result = by_name.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if dtype is None or result in _DTYPES:
        return result
    if dtype == "auto":
        return "auto"
    hint = nearest(dtype, by_name) if isinstance(dtype, str) else ""
    raise ConfigError(
        f"dtype: expected one of {', '.join(by_name)}, as torch.dtype or text, or 'auto', got {dtype!r}{hint}"
    )


def _difference(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Describe how tensors differ from a model's state dict `expected`; empty if they fit."""
    missing = [f"{name} {tuple(tensor.shape)}" for name, tensor in expected.items() if name not in tensors]
    left_over = [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items() if name not in expected]
    other = [
        f"{name} {tensor.dtype} {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
        for name, tensor in tensors.items()
        if name in expected and (tensor.shape != expected[name].shape or not tensor.is_floating_point())
    ]
    return mismatch(missing, left_over, other)


def _unshared(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detach the tensors and copy those that share memory, which safetensors refuses."""
    storages: set[int] = set()
    tensors = {}
    for name, tensor in weights.items():
        own = tensor.detach().contiguous()
        storage = own.untyped_storage().data_ptr()
        tensors[name] = own.clone() if storage in storages else own
        storages.add(storage)
    return tensors


def _refuse_arguments(where: str, unknown: Mapping[str, Any]) -> None:
    """Raise TypeError for unknown arguments of `from_pretrained`."""
    accepted = (
        "revision",
        "cache_dir",
        "force_download",
        "local_files_only",
        "token",
        "device",
        "dtype",
        "torch_dtype",
    )
    about_the_model = {field.name for field in dataclasses.fields(ModelConfig)} | _HEAD_ARGUMENTS_ELSEWHERE
    for name in unknown:
        if name in about_the_model:
            raise TypeError(
                f"{where}: expected no {name!r}, which config.json determines; for other classes replace the loaded "
                "model's head, model.head.classifier = torch.nn.Linear(model.head.classifier.in_features, num_classes),"
                " and its labels, model.relabel(names)"
            )
        raise TypeError(_unexpected(where, name, accepted))


def _unexpected(where: str, name: str, accepted: Sequence[str]) -> str:
    return f"{where}: unexpected argument {name!r}{nearest(name, accepted)}; it takes {', '.join(accepted)}"


def mismatch(missing: list[str], left_over: list[str], other: list[str]) -> str:
    """Describe why arrays are not a model's weights, with at most ten names of each kind."""
    kinds = (("missing", missing), ("left over", left_over), ("of another shape or type", other))
    return "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:10])}{' …' if len(names) > 10 else ''}"
        for kind, names in kinds
        if names
    )


def check_path(folder: Path) -> None:
    """Raise CheckpointError for a path that is not UTF-8, where safetensors could write weights and never read them."""
    if any("\ud800" <= letter <= "\udfff" for letter in str(folder)):
        raise CheckpointError(f"expected a path in UTF-8 to write to, got {str(folder)!r}; rename it or give another")


def read_description(folder: str | Path) -> dict[str, Any]:
    """Read and check a folder's config.json: format, architecture, model, preprocessing, labels, provenance.

    Raises:
        CheckpointError: when the file is missing or invalid.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path}: expected a model's config, got a file of {path.stat().st_size} bytes")
        description: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise CheckpointError(f"{path}: no such file; a model's folder holds {WEIGHTS_FILE} and {CONFIG_FILE}") from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise CheckpointError(f"{path}: expected a model's config as JSON: {exc}") from exc
    file_format = description.get("format") if isinstance(description, dict) else type(description).__name__
    if file_format != FORMAT:
        foreign = isinstance(description, dict) and description.get("model_type")
        hint = f"; it is the config of a {foreign!r} of another library, which cannot be read" if foreign else ""
        raise CheckpointError(f"{path}: expected the format {FORMAT!r}, got {file_format!r}{hint}")
    _check_description(description, path)
    return dict(description)


def _check_description(description: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError unless each part of a description has its type and can be written as JSON."""
    kinds = {"architecture": str, "model": dict, "preprocessing": dict, "labels": list, "provenance": dict}
    for key, kind in kinds.items():
        if not isinstance(description.get(key), kind):
            raise CheckpointError(f"{path}: expected {key!r} to be a {kind.__name__}, got {description.get(key)!r:.80}")
    if not all(isinstance(label, str) for label in description["labels"]):
        raise CheckpointError(f"{path}: expected every label to be text")
    num_classes = description["model"].get("num_classes", 0)  # only classifiers have it
    if description["labels"] and len(description["labels"]) != num_classes:
        raise CheckpointError(f"{path}: expected {num_classes} labels, one per class, got {len(description['labels'])}")
    try:
        json.dumps(description)
    except (TypeError, ValueError) as exc:
        raise CheckpointError(f"{path}: expected plain JSON values: {exc}") from exc


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file; those stored as 8-bit numbers (`trecvit.quantised`) become float32.

    Raises:
        CheckpointError: when the file is missing or not a safetensors file.
    """
    try:
        return dequantise(safetensors.torch.load_file(path))
    except FileNotFoundError as exc:
        raise CheckpointError(f"{path}: no such file; a model's folder holds {WEIGHTS_FILE} and {CONFIG_FILE}") from exc
    except (OSError, safetensors.SafetensorError, ValueError) as exc:
        raise CheckpointError(f"{path}: expected a safetensors file: {exc}") from exc
