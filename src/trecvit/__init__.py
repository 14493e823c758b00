"""TRecViT in PyTorch: a causal video transformer whose weights train on clips and stream frame by frame.

    model = trecvit.load("motions")
    out = model(video)                        # a clip [B,T,C,H,W]
    out, state = model.step(frames, state)    # or any next frames of a stream

All names are imported lazily, so that `import trecvit` takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trecvit.accelerate.exported import export, load_exported
    from trecvit.accelerate.optimize import optimize
    from trecvit.config import PRESETS, ModelConfig, Preprocessing
    from trecvit.data.class_names import class_names
    from trecvit.errors import TRecViTError
    from trecvit.model.local_tracker import LocalState, LocalTracker, LocalTrackerConfig
    from trecvit.model.readout_tracker import ReadoutState, ReadoutTracker, ReadoutTrackerConfig
    from trecvit.model.readouts import PointReadoutConfig
    from trecvit.model.state import State
    from trecvit.model.tapnext import TAPNext, TrackerConfig, TrackState
    from trecvit.model.tracker import PointTracker, TrackerOutput, track_both_ways
    from trecvit.model.trecvit import Output, TRecViT, create_model
    from trecvit.runtime.live import LiveTracker
    from trecvit.synthetic.world import World, WorldConfig
    from trecvit.weights.load import convert, load

__version__ = "0.1.0"

_HOMES = {
    "PRESETS": "trecvit.config",
    "LiveTracker": "trecvit.runtime.live",
    "LocalState": "trecvit.model.local_tracker",
    "LocalTracker": "trecvit.model.local_tracker",
    "LocalTrackerConfig": "trecvit.model.local_tracker",
    "ModelConfig": "trecvit.config",
    "Output": "trecvit.model.trecvit",
    "PointReadoutConfig": "trecvit.model.readouts",
    "PointTracker": "trecvit.model.tracker",
    "Preprocessing": "trecvit.config",
    "ReadoutState": "trecvit.model.readout_tracker",
    "ReadoutTracker": "trecvit.model.readout_tracker",
    "ReadoutTrackerConfig": "trecvit.model.readout_tracker",
    "State": "trecvit.model.state",
    "TAPNext": "trecvit.model.tapnext",
    "TRecViT": "trecvit.model.trecvit",
    "TRecViTError": "trecvit.errors",
    "TrackState": "trecvit.model.tapnext",
    "TrackerConfig": "trecvit.model.tapnext",
    "TrackerOutput": "trecvit.model.tracker",
    "World": "trecvit.synthetic.world",
    "WorldConfig": "trecvit.synthetic.world",
    "class_names": "trecvit.data.class_names",
    "convert": "trecvit.weights.load",
    "create_model": "trecvit.model.trecvit",
    "export": "trecvit.accelerate.exported",
    "load": "trecvit.weights.load",
    "load_exported": "trecvit.accelerate.exported",
    "optimize": "trecvit.accelerate.optimize",
    "track_both_ways": "trecvit.model.tracker",
}

__all__ = [
    "PRESETS",
    "LiveTracker",
    "LocalState",
    "LocalTracker",
    "LocalTrackerConfig",
    "ModelConfig",
    "Output",
    "PointReadoutConfig",
    "PointTracker",
    "Preprocessing",
    "ReadoutState",
    "ReadoutTracker",
    "ReadoutTrackerConfig",
    "State",
    "TAPNext",
    "TRecViT",
    "TRecViTError",
    "TrackState",
    "TrackerConfig",
    "TrackerOutput",
    "World",
    "WorldConfig",
    "class_names",
    "convert",
    "create_model",
    "export",
    "load",
    "load_exported",
    "optimize",
    "track_both_ways",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'trecvit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
