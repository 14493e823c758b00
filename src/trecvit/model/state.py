"""`State`: what a model remembers of the streams of a batch. It goes into `step` and comes out of it, and never hides.

Row b of every tensor belongs to stream b and to no other, so streams can start, stop and move between batches freely.
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
from jaxtyping import Bool, Float, Int64
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
    """The memory of B independent streams. Every method returns a new state and leaves this one as it is.

    Attributes:
        layers: One `LayerState` per block.
        frames_seen: How many frames each stream has had, int64.
        config: Architecture of the blocks that the state belongs to.
        image_size: Height and width of the frames in pixels.
    """

    layers: tuple[LayerState, ...]
    frames_seen: Int64[Tensor, " B"]
    config: ModelConfig
    image_size: tuple[int, int]

    _FORMAT: ClassVar[str]  # what `save` calls its files
    _ALIKE: ClassVar[tuple[str, ...]] = ("image_size", "dtype", "device")  # in states that `cat` joins
    _KEPT_BY_RESET: ClassVar[tuple[str, ...]] = ()  # tensors that say what a stream is, not what it has seen

    @property
    def batch_size(self) -> int:
        """Number of streams B."""
        return self.frames_seen.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.frames_seen.device

    @property
    def dtype(self) -> torch.dtype:
        """The model's dtype; the recurrence itself is carried in float32 at least."""
        return self.layers[0].taps.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes. It depends on the model, the image size and B, and not on the frames seen."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def reset(self: _States, mask: Bool[Tensor, " B"] | Sequence[bool]) -> _States:
        """The streams where `mask` is true begin anew, exactly as in a new state; the others go on untouched."""
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
        """The streams of these rows, in this order; a row may be dropped, moved or repeated."""
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
            raise StateError(f"select: rows {index.tolist()} go beyond the {self.batch_size} streams of this state")
        index = index % max(self.batch_size, 1)
        return self._with({name: tensor.index_select(0, index) for name, tensor in self._tensors().items()})

    @classmethod
    def cat(cls: type[_States], states: Sequence[_States]) -> _States:
        """All streams of several states in one batch, in order.

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
                raise StateError(f"cat: states 0 and {position} do not belong together: {reason}")
        columns = [state._tensors() for state in states]
        return first._with({name: torch.cat([column[name] for column in columns]) for name in columns[0]})

    def to(self: _States, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> _States:
        """On another device, or for a model of another floating-point dtype (the recurrence stays float32)."""
        carried = {name: tensor.to(device=device) for name, tensor in self._tensors().items()}
        if dtype is not None:
            for name, tensor in carried.items():
                if name.endswith(("taps", "pending")):
                    carried[name] = tensor.to(dtype)
        return self._with(carried)

    def replace(self: _States, **changes: Any) -> _States:
        """A copy with some attributes changed."""
        return dataclasses.replace(self, **changes)

    def detach(self: _States) -> _States:
        """The same values without history, for backpropagation through time that is cut here."""
        return self._with({name: tensor.detach() for name, tensor in self._tensors().items()})

    def save(self, path: str | Path) -> None:
        """Writes the state to one safetensors file, which appears whole or not at all."""
        metadata = {
            "format": self._FORMAT,
            "config": json.dumps(self.config.to_dict()),
            "image_size": json.dumps(self.image_size),
        }
        tensors = {name: tensor.detach().contiguous() for name, tensor in self._tensors().items()}
        write_whole(Path(path), lambda part: safetensors.torch.save_file(tensors, part, metadata))

    @classmethod
    def load(cls: type[_States], path: str | Path, *, device: torch.device | str = "cpu") -> _States:
        """Reads what `save` wrote.

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
                raise StateError(f"{path}: {config.depth} layers cannot be in {len(tensors)} tensors")
            # Without memory: what the description promises is compared with what is there before it is believed.
            state = cls._described(config, (height, width), tensors)
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError, ConfigError) as exc:
            if isinstance(exc, StateError):
                raise
            raise StateError(f"{path}: the state's description is damaged: {exc!r}") from exc
        for name, tensor in state._tensors().items():
            found = tensors.get(name)
            if found is None or found.shape != tensor.shape or found.dtype != tensor.dtype:
                what = "nothing" if found is None else f"{found.dtype} {tuple(found.shape)}"
                raise StateError(f"{path}: expected {name} {tensor.dtype} {tuple(tensor.shape)}, got {what}")
        return state._with({name: tensors[name] for name in state._tensors()})

    def check_fits(self, frames: Tensor, config: ModelConfig, *, device: torch.device, dtype: torch.dtype) -> None:
        """Raises StateError unless these frames are the next of these streams, for a model of this kind.

        Args:
            frames: `[B, T, 3, H, W]`.
            config: Architecture of the model's blocks.
            device: Where the model is.
            dtype: Its weights' dtype.
        """
        if reason := difference(config, self.config):
            raise StateError(f"the state belongs to another model; this model's and its architecture differ: {reason}")
        if self.batch_size != frames.shape[0]:
            raise StateError(
                f"the state holds {self.batch_size} streams, the frames {frames.shape[0]}; use state.select(rows) "
                f"to drop streams and {type(self).__name__}.cat to add some that init_state has made"
            )
        if self.image_size != tuple(frames.shape[3:]):
            raise StateError(
                f"the state was begun with {self.image_size[0]}x{self.image_size[1]} frames, got "
                f"{frames.shape[3]}x{frames.shape[4]}; resize them or begin with init_state(image_size=...)"
            )
        if not config.can_stream and bool(self.frames_seen.any()):
            raise StateError(
                f"temporal_mixer={config.temporal_mixer!r} looks at whole clips and cannot go on with a stream; "
                "give all frames at once, with a fresh state"
            )
        if self.dtype != dtype:
            raise StateError(f"the state is for a {self.dtype} model, this one is {dtype}; use state.to(dtype={dtype})")
        if self.device != device:
            raise StateError(f"the state is on {self.device}, the model on {device}; use state.to({device})")

    @classmethod
    def _described(
        cls: type[_States], config: ModelConfig, image_size: tuple[int, int], tensors: Mapping[str, Tensor]
    ) -> _States:
        """A state on the meta device, as large as a description and the numbers of rows in a file promise."""
        raise NotImplementedError

    def _tensors(self) -> dict[str, Tensor]:
        named = {"frames_seen": self.frames_seen}
        for number, layer in enumerate(self.layers):
            named[f"layers.{number}.hidden"], named[f"layers.{number}.taps"] = layer
        return named

    def _with(self: _States, tensors: dict[str, Tensor]) -> _States:
        layers = tuple(
            LayerState(tensors[f"layers.{number}.hidden"], tensors[f"layers.{number}.taps"])
            for number in range(len(self.layers))
        )
        others: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if not name.startswith("layers.")}
        return dataclasses.replace(self, layers=layers, **others)


@dataclass(frozen=True)
class State(StreamState):
    """What a `TRecViT` remembers of B independent streams; see `StreamState` for its methods.

    Attributes:
        evidence: Mean over all frames so far of the head's tanh layer, float32; [B,0] without a head.
        pending: The frames that wait until a temporal patch is complete, at most temporal_patch_size - 1.
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
        """The state of `batch_size` streams that have not begun; `dtype` is the model's."""
        if batch_size < 0:
            raise InputError(f"expected a number of streams of 0 or more, got {batch_size}")
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
    """What the blocks remember of `num_tokens` tokens per stream before their first frame; `dtype` is the model's."""
    sizes = state_sizes(config)
    hidden = (batch_size, num_tokens, sizes.hidden_width)
    taps = (batch_size, sizes.num_taps, num_tokens, sizes.taps_width)
    return tuple(
        LayerState(
            hidden=torch.zeros(hidden, dtype=recurrent_dtype(dtype), device=device),
            taps=torch.zeros(taps, dtype=dtype, device=device),
        )
        for _ in range(config.depth)
    )


def recurrent_dtype(dtype: torch.dtype) -> torch.dtype:
    """In what a model of this dtype carries its recurrence."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def num_patches(config: ModelConfig, image_size: tuple[int, int]) -> int:
    """Patches P of a frame of this height and width in pixels."""
    height, width = image_size
    return (height // config.patch_size) * (width // config.patch_size)


def difference(expected: ModelConfig, got: ModelConfig) -> str:
    """Words for the fields in which two architectures differ as far as a state is concerned, or nothing."""
    if expected is got:  # the usual case, and a compiler cannot look into a dataclass's fields
        return ""
    return ", ".join(
        f"{field.name} {getattr(expected, field.name)} and {getattr(got, field.name)}"
        for field in dataclasses.fields(ModelConfig)
        if field.name not in _DOES_NOT_SHAPE_STATE and getattr(expected, field.name) != getattr(got, field.name)
    )
