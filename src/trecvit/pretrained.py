"""A model's place on disk and on the Hub: a folder with `model.safetensors` and `config.json`. Knows no network.

config.json holds everything but the weights: the architecture, how frames become its input, the names of its classes
and where the weights come from.
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
from huggingface_hub import ModelHubMixin, snapshot_download
from torch import Tensor, nn

from trecvit.config import Architecture, ModelConfig, Preprocessing, nearest
from trecvit.errors import CheckpointError, ConfigError
from trecvit.files import write_json, write_whole
from trecvit.labels import check_labels
from trecvit.processes import usable_device

FORMAT = "trecvit-1"
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
_MAX_CONFIG_BYTES = 16_000_000

Dtype = torch.dtype | str | None
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_OTHERS_WORDS_FOR_THE_HEAD = {"num_labels", "labels", "id2label", "label2id", "ignore_mismatched_sizes", "config"}

Labels = Iterable[Any]  # of names; `trecvit.config.check_labels` says which

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
        provenance: Where the weights come from, as free text by key ("source", "licence", "command" ...).
    """

    config_class: ClassVar[type[Architecture]] = ModelConfig
    _hub_files: ClassVar[tuple[str, ...]] = (WEIGHTS_FILE, CONFIG_FILE)  # what of a repository is downloaded

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
        """Names of the classes in the order of their numbers, or nothing; setting them is `relabel`."""
        return self._labels

    @labels.setter
    def labels(self, labels: Labels) -> None:
        self.relabel(labels)

    def relabel(self, labels: Labels) -> None:
        """Names the classes anew, one name for each, or with an empty list not at all.

        Args:
            labels: What `trecvit.config.check_labels` takes: names in the order of the classes, or `{0: name, ...}`.

        Raises:
            ConfigError: for another number of names than of classes, and for names that are empty, double, no text or
                not in an order.
        """
        names = check_labels(labels)
        config = self.current_config()
        if names and len(names) != config.num_classes:
            raise ConfigError(f"expected {config.num_classes} labels, one per class, got {len(names)}")
        self.config, self._labels = config, names

    def current_config(self) -> Architecture:
        """`config`, with as many classes as a head has that was put in the place of the model's own."""
        return self.config

    def description(self) -> dict[str, Any]:
        """What is saved beside the weights: architecture, preprocessing, labels and provenance, as plain JSON values.

        Names of the classes of a head that is no longer there are left out, with a warning.
        """
        config, labels = self.current_config(), self.labels
        if labels and len(labels) != config.num_classes:
            warnings.warn(
                f"the model has {config.num_classes} classes and {len(labels)} labels of its former head, which are "
                "not saved; give it names with model.relabel(names) before saving",
                stacklevel=3,
            )
            labels = ()
        return {
            "model": config.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "labels": list(labels),
            "provenance": self.provenance,
        }

    def save(self, folder: str | Path) -> Path:
        """Writes `model.safetensors` and `config.json` into a folder, made if need be.

        Each file appears whole or not at all. The weights keep their dtype. A head with another number of classes is
        saved as what it is; any other change of the architecture is refused, because `load` could not make it anew.

        Raises:
            CheckpointError: before anything is written, when weights or modules are not those that the model's
                architecture has, naming them.
        """
        weights = self.state_dict()
        self._check_can_be_loaded(weights, Path(folder))
        return self._save(Path(folder), weights)

    def _check_can_be_loaded(self, weights: Mapping[str, Tensor], folder: Path) -> None:
        """Raises CheckpointError unless a model made anew from the description has these weights and modules."""
        # Tensor subclasses are shards, or numbers in a format of their own.
        strange = [name for name, tensor in weights.items() if type(tensor) not in (Tensor, nn.Parameter)]
        empty = [name for name, tensor in weights.items() if tensor.is_meta]
        if strange or empty:
            reason = (
                f"{strange[0]} is a {type(weights[strange[0]]).__name__}" if strange else f"{empty[0]} has no values"
            )
            raise CheckpointError(f"{folder}: not saved: expected plain tensors as weights, but {reason}")
        with torch.device("meta"):
            anew = type(self)(self.current_config(), preprocessing=self.preprocessing, provenance=self.provenance)
        modules = dict(self.named_modules())
        replaced = [
            f"{name} ({type(modules[name]).__name__} instead of {type(module).__name__})"
            for name, module in anew.named_modules()
            # A plain nn.Linear computes what our Linear does.
            if name in modules and not issubclass(type(module), type(modules[name]))
        ]
        reasons = _difference(weights, anew.state_dict())
        if replaced:
            reasons = "; ".join([f"{len(replaced)} replaced: {', '.join(replaced[:10])}", *filter(None, [reasons])])
        if reasons:
            raise CheckpointError(
                f"{folder}: not saved: expected the weights and modules of the model's config, or another number of "
                f"classes in head.classifier, got others, which could not be loaded again; {reasons}; remove "
                "parametrisations, merge adapters, or keep model.state_dict() with torch.save"
            )

    def _save(self, folder: Path, weights: Mapping[str, Tensor]) -> Path:
        check_path(folder)
        description = {"format": FORMAT, "architecture": type(self).__name__, **self.description()}
        _check_description(description, folder)
        tensors = _apart(weights)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / WEIGHTS_FILE, lambda part: safetensors.torch.save_file(tensors, part, {"format": "pt"}))
        write_json(folder / CONFIG_FILE, description, indent=2)
        return folder

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device | str = "cpu", dtype: Dtype = None) -> Self:
        """Reads what `save` wrote.

        Args:
            folder: The folder.
            device: Where the weights go.
            dtype: What they become, as torch.dtype or by name; by default float32, however they were stored. "auto"
                leaves them as they were stored.

        Raises:
            ConfigError: when there is no such device here, or for what is no floating-point dtype.
            CheckpointError: when a file is missing, damaged or of another architecture, listing by name the tensors
                that are missing, left over or of another shape.
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
            raise CheckpointError(f"{folder}: {config.depth} layers cannot be made of {len(tensors)} tensors")
        model = build(
            lambda: cls(config, preprocessing=preprocessing, provenance=description["provenance"]),
            tensors,
            source=str(folder / WEIGHTS_FILE),
            device=device,
            dtype=dtype,
        )
        # As they are: earlier releases saved names that `relabel` refuses, such as the same one twice.
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
        """`save`, and a model card beside it unless there is one.

        Args:
            save_directory: The folder.
            config: Not taken: the model's own is saved.
            repo_id: Where to push, by default the folder's name.
            push_to_hub: Whether to push the folder to the Hub.
            model_card_kwargs: Fields of the model card.
            push_to_hub_kwargs: Other arguments of `push_to_hub`, only with `push_to_hub=True`.

        Returns:
            The address of the commit, or None.

        Raises:
            TypeError: for an argument that would not be read.
        """
        where = f"{type(self).__name__}.save_pretrained"
        if config is not None:
            raise TypeError(f"{where}: expected no config, as the model's own is saved, got {config!r:.80}")
        for_hub = [*inspect.signature(self.push_to_hub).parameters]
        taken = ("save_directory", "repo_id", "push_to_hub", "model_card_kwargs")
        for name in push_to_hub_kwargs:
            if name not in for_hub:
                raise TypeError(_unexpected(where, name, (*taken, *for_hub)))
        unread = [*push_to_hub_kwargs, *(["repo_id"] if repo_id is not None else [])]
        if unread and not push_to_hub:
            raise TypeError(f"{where}: expected {unread[0]!r} only with push_to_hub=True, which alone reads it")
        folder = self.save(save_directory)
        if not (folder / "README.md").exists():
            self.generate_model_card(**(model_card_kwargs or {})).save(folder / "README.md")
        if not push_to_hub:
            return None
        return self.push_to_hub(repo_id or folder.name, model_card_kwargs=model_card_kwargs, **push_to_hub_kwargs)

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
            cache_dir: Where downloads are kept, by default the Hub's own place.
            force_download: Whether to download again what is there.
            local_files_only: Whether to take only what has been downloaded before.
            token: For private repositories; by default the one of `hf auth login`.
            device: Where the weights go.
            dtype: What they become, see `load`.
            torch_dtype: The same under transformers' former name.

        Raises:
            TypeError: for any other argument. Nothing that decides about the model is taken: config.json does.
            ConfigError: for a device or dtype that there is not, and for a revision of a folder.
            CheckpointError: see `load`.
        """
        _refuse_arguments(f"{cls.__name__}.from_pretrained", unknown)
        dtype, also = as_dtype(dtype), as_dtype(torch_dtype)
        if None not in (dtype, also) and dtype != also:
            raise ConfigError(f"expected the same as dtype and torch_dtype, its other name, got {dtype} and {also}")
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
            raise ConfigError(f"{source}: expected no revision for a folder, which has none, got {revision!r}")
        return cls.load(source, device=device, dtype=also if dtype is None else dtype)


def build(
    factory: Callable[[], _Model],
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    device: torch.device | str = "cpu",
    dtype: Dtype = None,
) -> _Model:
    """A module made without initialisation and given these weights, in evaluation mode.

    Args:
        factory: Makes the module.
        tensors: Its complete state dict.
        source: What an error names as the tensors' origin.
        device: Where the weights go.
        dtype: What they become, see `as_dtype`; None is float32.

    Raises:
        CheckpointError: listing by name the tensors that are missing, left over or of another shape or kind.
    """
    try:
        with torch.device("meta"):
            model = factory()
    except (RuntimeError, OverflowError) as exc:
        raise CheckpointError(f"{source}: no model can have the sizes that its description asks for: {exc}") from exc
    if reasons := _difference(tensors, model.state_dict()):
        raise CheckpointError(f"{source}: the weights do not match the model; {reasons}")
    wanted = as_dtype(dtype) or torch.float32
    placed = {
        name: tensor.to(device=device, dtype=tensor.dtype if isinstance(wanted, str) else wanted)
        for name, tensor in tensors.items()
    }
    model.load_state_dict(placed, assign=True)
    return model.eval()


def as_dtype(dtype: Dtype) -> torch.dtype | Literal["auto"] | None:
    """The dtype that weights become: of a torch.dtype or its name ("float16", "torch.bfloat16"); "auto" and None stay.

    Raises:
        ConfigError: for anything but the floating-point types that models compute in.
    """
    named = {str(known).removeprefix("torch."): known for known in _DTYPES}
    found = named.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if dtype is None or found in _DTYPES:
        return found
    if dtype == "auto":
        return "auto"
    hint = nearest(dtype, named) if isinstance(dtype, str) else ""
    raise ConfigError(
        f"dtype: expected one of {', '.join(named)}, as torch.dtype or text, or 'auto', got {dtype!r}{hint}"
    )


def _difference(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Words for what keeps tensors from being the state dict of a model that has `expected`, or nothing."""
    missing = [f"{name} {tuple(tensor.shape)}" for name, tensor in expected.items() if name not in tensors]
    left_over = [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items() if name not in expected]
    other = [
        f"{name} {tensor.dtype} {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
        for name, tensor in tensors.items()
        if name in expected and (tensor.shape != expected[name].shape or not tensor.is_floating_point())
    ]
    return mismatch(missing, left_over, other)


def _apart(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without gradients, each in memory of its own: safetensors takes no two that share some."""
    storages: set[int] = set()
    tensors = {}
    for name, tensor in weights.items():
        own = tensor.detach().contiguous()
        storage = own.untyped_storage().data_ptr()
        tensors[name] = own.clone() if storage in storages else own
        storages.add(storage)
    return tensors


def _refuse_arguments(where: str, unknown: Mapping[str, Any]) -> None:
    """Raises TypeError for arguments of `from_pretrained` that it does not take."""
    taken = ("revision", "cache_dir", "force_download", "local_files_only", "token", "device", "dtype", "torch_dtype")
    about_the_model = {field.name for field in dataclasses.fields(ModelConfig)} | _OTHERS_WORDS_FOR_THE_HEAD
    for name in unknown:
        if name in about_the_model:
            raise TypeError(
                f"{where}: expected no {name!r}, which config.json says; for other classes give the loaded model a new "
                "head, model.head.classifier = torch.nn.Linear(model.head.classifier.in_features, num_classes), and "
                "names, model.relabel(names)"
            )
        raise TypeError(_unexpected(where, name, taken))


def _unexpected(where: str, name: str, taken: Sequence[str]) -> str:
    return f"{where}: unexpected argument {name!r}{nearest(name, taken)}; it takes {', '.join(taken)}"


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
        of_others = isinstance(description, dict) and description.get("model_type")
        hint = f"; it describes a {of_others!r} of another library, which is not read" if of_others else ""
        raise CheckpointError(f"{path}: expected the format {FORMAT!r}, got {found!r}{hint}")
    _check_description(description, path)
    return dict(description)


def _check_description(description: Mapping[str, Any], path: Path) -> None:
    """Raises CheckpointError unless every part of a description is of its kind and can be written as JSON."""
    kinds = {"architecture": str, "model": dict, "preprocessing": dict, "labels": list, "provenance": dict}
    for key, kind in kinds.items():
        if not isinstance(description.get(key), kind):
            raise CheckpointError(f"{path}: expected {key!r} to be a {kind.__name__}, got {description.get(key)!r:.80}")
    if not all(isinstance(label, str) for label in description["labels"]):
        raise CheckpointError(f"{path}: expected every label to be text")
    num_classes = description["model"].get("num_classes")
    if description["labels"] and len(description["labels"]) != num_classes:
        raise CheckpointError(f"{path}: {len(description['labels'])} labels for {num_classes} classes")
    try:
        json.dumps(description)
    except (TypeError, ValueError) as exc:
        raise CheckpointError(f"{path}: expected a description of plain JSON values: {exc}") from exc


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
