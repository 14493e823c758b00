"""Explicit states of streams: `step` returns a new state and mutates nothing.

Row b of each tensor belongs to stream b alone, so that streams can start, stop and move between batches freely.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import safetensors
import safetensors.torch
import torch
from jaxtyping import Bool, Float, Int64, Real
from torch import Tensor

from trecvit.config import ImageSize, ModelConfig, as_image_size
from trecvit.errors import ConfigError, InputError, StateError
from trecvit.files import write_whole
from trecvit.model.lru import LayerState
from trecvit.model.mixers import state_sizes

_States = TypeVar("_States", bound="StreamState")  # not Self, which the tests' shape checks do not understand
_DOES_NOT_SHAPE_STATE = ("min_radius", "max_radius", "num_classes")


@dataclass(frozen=True)
class StreamState:
    """State of B independent streams. Methods return a new state and leave this one unchanged.

    Attributes:
        layers: One `LayerState` per block.
        frames_seen: Number of frames that each stream has processed, int64; floating-point in exported graphs.
        config: Architecture of the blocks that the state belongs to.
        image_size: Height and width of the frames in pixels.
    """

    layers: tuple[LayerState, ...]
    frames_seen: Real[Tensor, " B"]
    config: ModelConfig
    image_size: tuple[int, int]

    _FORMAT: ClassVar[str]  # of the files of `save`
    _ALIKE: ClassVar[tuple[str, ...]] = ("image_size", "dtype", "device")  # equal in states that `cat` joins
    _KEPT_BY_RESET: ClassVar[tuple[str, ...]] = ()  # inputs of a stream rather than its history

    @property
    def batch_size(self) -> int:
        """Number of streams B."""
        return self.frames_seen.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.frames_seen.device

    @property
    def dtype(self) -> torch.dtype:
        """The model's dtype; recurrent values are stored in float32 at least."""
        return self.layers[0].taps.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes. It depends on the model, the image size and B, not on the frames seen."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def reset(self: _States, mask: Bool[Tensor, " B"] | Sequence[bool]) -> _States:
        """Reset the streams where `mask` is true to their initial state; the others keep theirs."""
        mask = torch.as_tensor(mask, device=self.device)
        if mask.shape != (self.batch_size,) or mask.dtype != torch.bool:
            raise StateError(
                f"reset: expected one bool for each of {self.batch_size} streams, "
                f"got {mask.dtype} of shape {tuple(mask.shape)}"
            )

        def reset_rows(tensor: Tensor) -> Tensor:
            return torch.where(mask.view(-1, *[1] * (tensor.dim() - 1)), torch.zeros((), dtype=tensor.dtype), tensor)

        return self._with(
            {
                name: tensor if name in self._KEPT_BY_RESET else reset_rows(tensor)
                for name, tensor in self._tensors().items()
            }
        )

    def select(
        self: _States, rows: Int64[Tensor, " R"] | Bool[Tensor, " B"] | Sequence[int] | Sequence[bool]
    ) -> _States:
        """Select the streams of these rows, in this order; rows may be dropped, moved or repeated."""
        index = torch.as_tensor(rows, device=self.device)
        if index.dtype == torch.bool and index.shape == (self.batch_size,):
            index = index.nonzero()[:, 0]
        index = index.long() if index.numel() == 0 else index
        if index.dim() != 1 or index.dtype not in (torch.int64, torch.int32):
            raise StateError(
                f"select: expected row numbers or {self.batch_size} bools, "
                f"got {index.dtype} of shape {tuple(index.shape)}"
            )
        if index.numel() and not (-self.batch_size <= int(index.min()) and int(index.max()) < self.batch_size):
            raise StateError(f"select: expected rows of {self.batch_size} streams, got {index.tolist()}")
        index = index % max(self.batch_size, 1)
        return self._with({name: tensor.index_select(0, index) for name, tensor in self._tensors().items()})

    @classmethod
    def cat(cls: type[_States], states: Sequence[_States]) -> _States:
        """Concatenate the streams of several states, in order.

        Raises:
            StateError: for no states, and for states of different models, image sizes, dtypes or devices.
        """
        if not states:
            raise StateError("cat: expected at least one state, got none")
        first = states[0]
        for position, state in enumerate(states[1:], start=1):
            reason = difference(first.config, state.config)
            for name in first._ALIKE:
                if getattr(first, name) != getattr(state, name):
                    reason = reason or f"{name} {getattr(first, name)} and {getattr(state, name)}"
            if reason:
                raise StateError(f"cat: expected states of one kind, states 0 and {position} differ: {reason}")
        columns = [state._tensors() for state in states]
        return first._with({name: torch.cat([column[name] for column in columns]) for name in columns[0]})

    def to(self: _States, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> _States:
        """Move to another device, or convert for a model of another dtype (recurrent values stay float32)."""
        tensors = {name: tensor.to(device=device) for name, tensor in self._tensors().items()}
        if dtype is not None:
            for name, tensor in tensors.items():
                if name.endswith(("taps", "pending")):
                    tensors[name] = tensor.to(dtype)
        return self._with(tensors)

    def replace(self: _States, **changes: Any) -> _States:
        """Copy with some attributes changed."""
        return dataclasses.replace(self, **changes)

    def detach(self: _States) -> _States:
        """Detach from the graph, to truncate backpropagation through time here."""
        return self._with({name: tensor.detach() for name, tensor in self._tensors().items()})

    def save(self, path: str | Path) -> None:
        """Write the state to a safetensors file, atomically."""
        metadata = {
            "format": self._FORMAT,
            "config": json.dumps(self.config.to_dict()),
            "image_size": json.dumps(self.image_size),
        }
        tensors = {name: tensor.detach().contiguous() for name, tensor in self._tensors().items()}
        write_whole(Path(path), lambda part: safetensors.torch.save_file(tensors, part, metadata))

    @classmethod
    def load(cls: type[_States], path: str | Path, *, device: torch.device | str = "cpu") -> _States:
        """Load a file that `save` wrote.

        Raises:
            StateError: when the file is missing, damaged, or not a state.
        """
        try:
            with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, safetensors.SafetensorError) as exc:
            raise StateError(f"{path}: expected a state written by {cls.__name__}.save: {exc}") from exc
        if metadata.get("format") != cls._FORMAT:
            raise StateError(f"{path}: expected the format {cls._FORMAT!r}, got {metadata.get('format')!r}")
        try:
            config = ModelConfig.from_dict(json.loads(metadata["config"]))
            height, width = (int(side) for side in json.loads(metadata["image_size"]))
            if config.depth > len(tensors):
                raise StateError(f"{path}: expected tensors of {config.depth} layers, got {len(tensors)} tensors")
            # On the meta device: untrusted sizes are compared with the file's tensors before memory is allocated.
            state = cls._described(config, (height, width), tensors)
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, ConfigError) as exc:
            if isinstance(exc, StateError):
                raise
            raise StateError(
                f"{path}: expected a state's config and image size, got damaged metadata: {exc!r}"
            ) from exc
        for name, tensor in state._tensors().items():
            stored = tensors.get(name)
            if stored is None or stored.shape != tensor.shape or stored.dtype != tensor.dtype:
                got = "no such tensor" if stored is None else f"{stored.dtype} {tuple(stored.shape)}"
                raise StateError(f"{path}: expected {name} {tensor.dtype} {tuple(tensor.shape)}, got {got}")
        return state._with({name: tensors[name] for name in state._tensors()})

    def check_fits(self, frames: Tensor, config: ModelConfig, *, device: torch.device, dtype: torch.dtype) -> None:
        """Raise StateError unless these frames, in a model of this kind, can continue these streams.

        Args:
            frames: `[B, T, 3, H, W]`.
            config: Architecture of the model's blocks.
            device: Device of the model.
            dtype: Dtype of its weights.
        """
        if reason := difference(config, self.config):
            raise StateError(f"expected a state of this model's architecture, got another: {reason}")
        if self.batch_size != frames.shape[0]:
            raise StateError(
                f"the state holds {self.batch_size} streams, the frames {frames.shape[0]}; use state.select(rows) "
                f"to drop streams and {type(self).__name__}.cat to add some from init_state"
            )
        if self.image_size != tuple(frames.shape[3:]):
            raise StateError(
                f"expected frames of the state's size {self.image_size[0]}x{self.image_size[1]}, got "
                f"{frames.shape[3]}x{frames.shape[4]}; resize them, or use a new state, init_state(image_size=...)"
            )
        if not config.can_stream and bool(self.frames_seen.any()):
            raise StateError(
                f"temporal_mixer={config.temporal_mixer!r} needs whole clips and cannot continue a stream; "
                "give all frames at once, with a new state"
            )
        if self.dtype != dtype:
            raise StateError(f"the state is for a {self.dtype} model, this one is {dtype}; use state.to(dtype={dtype})")
        if self.device != device:
            raise StateError(f"the state is on {self.device}, the model on {device}; use state.to({device})")

    @classmethod
    def _described(
        cls: type[_States], config: ModelConfig, image_size: tuple[int, int], tensors: Mapping[str, Tensor]
    ) -> _States:
        """Return a state on the meta device, in the sizes that a file's metadata and tensors declare."""
        raise NotImplementedError

    def _tensors(self) -> dict[str, Tensor]:
        named = {"frames_seen": self.frames_seen}
        for index, layer in enumerate(self.layers):
            named[f"layers.{index}.hidden"], named[f"layers.{index}.taps"] = layer
        return named

    def _with(self: _States, tensors: dict[str, Tensor]) -> _States:
        layers = tuple(
            LayerState(tensors[f"layers.{index}.hidden"], tensors[f"layers.{index}.taps"])
            for index in range(len(self.layers))
        )
        others: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if not name.startswith("layers.")}
        return dataclasses.replace(self, layers=layers, **others)


@dataclass(frozen=True)
class State(StreamState):
    """State of a `TRecViT` for B independent streams; see `StreamState` for its methods.

    Attributes:
        evidence: Mean over all frames so far of the head's tanh layer, float32; [B,0] without a head.
        pending: Frames of the incomplete temporal patch, at most temporal_patch_size - 1.
    """

    evidence: Float[Tensor, "B R"]
    pending: Float[Tensor, "B waiting C H W"]

    _FORMAT: ClassVar[str] = "trecvit-state-1"

    @classmethod
    def zeros(
        cls,
        config: ModelConfig,
        batch_size: int,
        *,
        image_size: ImageSize,
        device: torch.device,
        dtype: torch.dtype,
    ) -> State:
        """Return the initial state of `batch_size` streams; `dtype` is the model's."""
        if batch_size < 0:
            raise InputError(f"expected a batch size of 0 or more, got {batch_size}")
        height, width = image_size = as_image_size(image_size)
        num_tokens = num_patches(config, image_size) + (config.pooling == "cls")
        waiting = (batch_size, config.temporal_patch_size - 1, 3, height, width)
        evidence = (batch_size, config.head_width if config.num_classes else 0)
        return cls(
            layers=empty_layers(config, batch_size, num_tokens, device=device, dtype=dtype),
            frames_seen=torch.zeros(batch_size, dtype=torch.int64, device=device),
            config=config,
            image_size=image_size,
            evidence=torch.zeros(evidence, dtype=recurrent_dtype(dtype), device=device),
            pending=torch.zeros(waiting, dtype=dtype, device=device),
        )

    @classmethod
    def _described(cls, config: ModelConfig, image_size: tuple[int, int], tensors: Mapping[str, Tensor]) -> State:
        batch_size, dtype = len(tensors["frames_seen"]), tensors["layers.0.taps"].dtype
        return cls.zeros(config, batch_size, image_size=image_size, device=torch.device("meta"), dtype=dtype)

    def _tensors(self) -> dict[str, Tensor]:
        return {"evidence": self.evidence, "pending": self.pending, **super()._tensors()}


def empty_layers(
    config: ModelConfig, batch_size: int, num_tokens: int, *, device: torch.device, dtype: torch.dtype
) -> tuple[LayerState, ...]:
    """Return the blocks' initial states for `num_tokens` tokens per stream; `dtype` is the model's."""
    layers = []
    for index in range(config.depth):
        sizes = state_sizes(config, index)
        hidden = (batch_size, num_tokens, sizes.hidden_width)
        taps = (batch_size, sizes.num_taps, num_tokens, sizes.taps_width)
        layers.append(
            LayerState(
                hidden=torch.zeros(hidden, dtype=recurrent_dtype(dtype), device=device),
                taps=torch.zeros(taps, dtype=dtype, device=device),
            )
        )
    return tuple(layers)


def recurrent_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the recurrence in a model of this dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def num_patches(config: ModelConfig, image_size: tuple[int, int]) -> int:
    """Count the patches P of a frame of this height and width in pixels."""
    height, width = image_size
    return (height // config.patch_size) * (width // config.patch_size)


def difference(expected: ModelConfig, got: ModelConfig) -> str:
    """Describe the fields in which two architectures differ, of those that shape a state; empty if none."""
    if expected is got:  # the usual case, and a compiler cannot trace dataclasses.fields
        return ""
    return ", ".join(
        f"{field.name} {getattr(expected, field.name)} and {getattr(got, field.name)}"
        for field in dataclasses.fields(ModelConfig)
        if field.name not in _DOES_NOT_SHAPE_STATE and getattr(expected, field.name) != getattr(got, field.name)
    )
