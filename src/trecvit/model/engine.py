"""The pass over frames that a faster engine can take over, and the limits of a model that has one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, Self, SupportsIndex, TypeVar

import torch
from torch import Tensor

from trecvit.errors import ConfigError
from trecvit.model.state import StreamState
from trecvit.pretrained import Pretrained

_Out = TypeVar("_Out", covariant=True)
_State = TypeVar("_State", bound=StreamState)


class Engine(Protocol[_Out, _State]):
    """One pass over frames in [0,1], a whole number of temporal patches: their output and the next state."""

    def __call__(self, frames: Tensor, state: _State, /) -> tuple[_Out, _State]:
        """Compute the pass; `state` is not changed."""


class Optimizable(Pretrained):
    """A model whose pass over frames, `_advance`, another engine can take over.

    Attributes:
        is_optimized: Whether weights lie in packed or compiled form beside the parameters. Then the model refuses to be
            saved, copied, pickled, converted, moved, trained or loaded into, which would miss them.
    """

    is_optimized: bool = False
    _advance: Callable[..., Any]
    _engine: Callable[..., Any] | None = None

    @property
    def engine(self) -> Callable[..., Any]:
        """What computes the pass over frames; by default the model's own code, operation by operation."""
        return self._advance if self._engine is None else self._engine

    @engine.setter
    def engine(self, engine: Callable[..., Any]) -> None:
        self._engine = engine

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the weights are."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""

    def train(self, mode: bool = True) -> Self:
        """See `nn.Module.train`."""
        self._check_not_optimized("train", mode)
        return super().train(mode)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """See `nn.Module.requires_grad_`."""
        self._check_not_optimized("requires_grad_", requires_grad)
        return super().requires_grad_(requires_grad)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """See `nn.Module.load_state_dict`."""
        self._check_not_optimized("load_state_dict")
        return super().load_state_dict(*args, **kwargs)

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        self._check_not_optimized("copy or pickle")
        return super().__reduce_ex__(protocol)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Convert or move the weights, for `to`, `half`, `cuda` and the like."""
        weight = torch.empty(0, dtype=self.dtype, device=self.device)
        self._check_not_optimized("to", fn(weight) is not weight)
        if self.is_optimized:
            return self
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _check_can_be_loaded(self, weights: Mapping[str, Tensor], folder: Path) -> None:
        if self.is_optimized:
            raise ConfigError(
                f"{folder}: expected a model as it was loaded or made, got a result of optimize; save the model that "
                "it was made of"
            )
        super()._check_can_be_loaded(weights, folder)

    def _check_not_optimized(self, action: str, changes: bool = True) -> None:
        if self.is_optimized and changes:
            raise ConfigError(
                f"{action}: expected a model as it was loaded or made, got a result of optimize or load_exported, "
                "whose weights are packed or compiled; make it from the loaded model again"
            )
