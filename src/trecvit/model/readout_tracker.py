"""The paper's point tracker (arXiv:2412.14294, section 5.3): a frozen TRecViT and a `RecurrentPointReadout`.

The backbone processes frames, independent of the points; each point has a state that attends to the frames' features
one after another. So points do not change each other's tracks.

B videos (streams) · T frames · Q query points · N tokens per frame · D width · S width of a point's state
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trecvit.config import BlocksConfig, ModelConfig, Preprocessing
from trecvit.model.engine import Engine
from trecvit.model.readouts import PointReadoutConfig, RecurrentPointReadout
from trecvit.model.tracker import PointTracker, TrackerOutput, TrackerState
from trecvit.model.trecvit import TRecViT

_Tracker = TypeVar("_Tracker", bound="ReadoutTracker")  # not Self, which the tests' shape checks do not understand


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadoutTrackerConfig(BlocksConfig):
    """Architecture of the paper's point tracker (section 5.3): a frozen TRecViT and a recurrent readout.

    Attributes:
        blocks: The backbone, without its head.
        readout: The readout of the points.
    """

    blocks: ModelConfig = field(default_factory=lambda: ModelConfig(num_classes=0))
    readout: PointReadoutConfig = field(default_factory=PointReadoutConfig)

    def __post_init__(self) -> None:
        self._require_blocks(num_classes=0, temporal_patch_size=1)
        self._require(isinstance(self.readout, PointReadoutConfig), "readout", "a PointReadoutConfig")


@dataclass(frozen=True)
class ReadoutState(TrackerState):
    """State of a `ReadoutTracker` for B streams with Q points each; see `TrackerState` for its methods.

    Attributes:
        point_states: The readout's state of each point, float32 at least; zero in empty slots.
    """

    point_states: Float[Tensor, "B Q S"]

    _FORMAT: ClassVar[str] = "trecvit-readout-state-1"
    _ALIKE: ClassVar[tuple[str, ...]] = (*TrackerState._ALIKE, "readout_width")
    _POINT_MEMORY: ClassVar[str] = "point_states"

    @property
    def readout_width(self) -> int:
        """Channels S of a point's state."""
        return self.point_states.shape[2]


class ReadoutTracker(PointTracker):
    """The tracker; see `PointTracker` for its use, and `on` for a tracker on a trained backbone.

    The backbone has no gradient and is never in training mode: only the readout is trained (paper, section 5.3).
    """

    config: ReadoutTrackerConfig
    config_class = ReadoutTrackerConfig
    state_class = ReadoutState
    engine: Engine[Tensor, ReadoutState]

    def __init__(
        self,
        config: ReadoutTrackerConfig,
        *,
        preprocessing: Preprocessing | None = None,
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(config, preprocessing=preprocessing, provenance=provenance)
        self.readout = RecurrentPointReadout(config.blocks.width, config.readout)
        for part in self._backbone():
            part.requires_grad_(False)

    @classmethod
    def on(cls: type[_Tracker], backbone: TRecViT, readout: PointReadoutConfig | None = None) -> _Tracker:
        """Build a tracker from a copy of this backbone and an untrained readout.

        Args:
            backbone: Its head is left out.
            readout: Sizes, by default MooG's.

        Raises:
            ConfigError: for a backbone whose tokens span several frames.
        """
        config = ReadoutTrackerConfig(
            blocks=backbone.config.replace(num_classes=0), readout=readout or PointReadoutConfig()
        )
        tracker = cls(config, preprocessing=cls.preprocessing_for(backbone.preprocessing.image_size))
        weights = {name: weight for name, weight in backbone.state_dict().items() if not name.startswith("head.")}
        own = {name: weight for name, weight in tracker.state_dict().items() if name.startswith("readout.")}
        tracker.load_state_dict({**own, **weights})
        return tracker.to(backbone.device, backbone.dtype).eval()

    def train(self: _Tracker, mode: bool = True) -> _Tracker:
        """Set the readout's training mode; the backbone stays in evaluation mode."""
        super().train(mode)
        for part in self._backbone():
            part.eval()
        return self

    @property
    def point_memory_width(self) -> int:
        """Channels S of a point's state."""
        return self.config.readout.width

    def _backbone(self) -> tuple[nn.Module, ...]:
        return self.tokenizer, self.blocks, self.norm

    def _track(self, frames: Tensor, state: TrackerState) -> tuple[TrackerOutput, TrackerState]:
        assert isinstance(state, ReadoutState), "checked by step"
        frames_until = state.query_frames - state.frames_seen[:, None]
        size_xy = torch.tensor(state.image_size, device=self.device).flip(0)
        with torch.no_grad():
            features, state = self.engine(frames, state)
        queries_xy = state.query_points_yx.flip(-1) / size_xy
        read, point_states = self.readout(features, queries_xy, frames_until, state.point_states)
        out = TrackerOutput(
            read.points_xy * size_xy,
            read.visible_logits,
            read.certainty_logits.sigmoid(),
            certainty_logits=read.certainty_logits,
        )
        return out, state.replace(point_states=point_states)

    def _advance(self, frames: Tensor, state: ReadoutState) -> tuple[Tensor, ReadoutState]:
        """Run the backbone; return its features [B,T,N,D] and the state with new layers."""
        tokens, layers = self._through_blocks(self.tokenizer(frames), state.layers, state.frames_seen == 0)
        return self.norm(tokens), state.replace(layers=layers, frames_seen=state.frames_seen + frames.shape[1])
