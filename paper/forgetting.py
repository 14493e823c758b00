"""Ways to decay or reset the state of a stream that is longer than the training clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from trecvit.model.state import State


@dataclass(frozen=True, kw_only=True, slots=True)
class Forgetting:
    """A rule for the state of a stream.

    Attributes:
        name: For tables and legends.
        per_frame: Factor on the recurrences' states after every frame.
        per_clip: Factor after every T frames, the length of the training clips; 0 resets the stream.
        at_cuts: Whether the stream is reset before the first frame after a cut.
    """

    name: str
    per_frame: float = 1.0
    per_clip: float = 1.0
    at_cuts: bool = False


FORGETTINGS = (
    Forgetting(name="carried on"),
    Forgetting(name="x 0.99 a frame", per_frame=0.99),
    Forgetting(name="x 0.9 a frame", per_frame=0.9),
    Forgetting(name="x 0.5 every trained length", per_clip=0.5),
    Forgetting(name="begun anew every trained length", per_clip=0.0),
    Forgetting(name="begun anew at cuts", at_cuts=True),
)
MULTIPLES = (1.0, 1.5, 3.0, 10.0, 100.0)
"""Lengths at which streams are tested, in training lengths."""


def reset_at_cuts(state: State, forgettings: Sequence[Forgetting], cuts: Bool[Tensor, " b"]) -> State:
    """State before a frame: reset at cuts, of the same b streams under each rule in turn."""
    return state.reset(torch.cat([cuts & how.at_cuts for how in forgettings]))


def forgotten(state: State, forgettings: Sequence[Forgetting], *, clip_ends: bool) -> State:
    """State after a frame, decayed or reset.

    Args:
        state: Of the same number of streams under each rule in turn.
        forgettings: The rules.
        clip_ends: Whether the number of frames so far is a multiple of T.
    """
    num_streams = state.batch_size // len(forgettings)
    resets = [clip_ends and how.per_clip == 0.0 for how in forgettings]
    state = state.reset(torch.tensor(resets).repeat_interleave(num_streams))
    factors = [how.per_frame * (how.per_clip if clip_ends else 1.0) for how in forgettings]
    rows = torch.tensor(factors).repeat_interleave(num_streams).to(state.device)[:, None, None]
    return state.replace(layers=tuple(layer._replace(hidden=layer.hidden * rows) for layer in state.layers))


def state_rms(state: State, rows: slice) -> float:
    """Root mean square of some streams' recurrent states over blocks, patches and channels."""
    return float(torch.stack([layer.hidden[rows].square().mean() for layer in state.layers]).mean().sqrt())
