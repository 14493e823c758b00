"""What can be done to the state of a stream that goes on past the length of the training clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from trecvit.model.state import State


@dataclass(frozen=True, kw_only=True, slots=True)
class Forgetting:
    """A way to forget.

    Attributes:
        name: In words.
        per_frame: The recurrences' states are multiplied by this after every frame.
        per_clip: Likewise after every T frames, the length of the training clips; 0 begins the stream anew there.
        at_cuts: The stream begins anew with the first frame after a cut.
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
"""How many times the trained length a stream has been looked at, where it is tested."""


def begun_anew(state: State, forgettings: Sequence[Forgetting], cuts: Bool[Tensor, " b"]) -> State:
    """Before a frame: the state of the same b streams under each way in turn, begun anew where a way says so."""
    return state.reset(torch.cat([cuts & how.at_cuts for how in forgettings]))


def forgotten(state: State, forgettings: Sequence[Forgetting], *, clip_ends: bool) -> State:
    """After a frame: the same state, smaller or begun anew where a way says so.

    Args:
        state: Of as many streams under each way in turn.
        forgettings: The ways.
        clip_ends: Whether a multiple of T frames has been seen.
    """
    num_streams = state.batch_size // len(forgettings)
    anew = [clip_ends and how.per_clip == 0.0 for how in forgettings]
    state = state.reset(torch.tensor(anew).repeat_interleave(num_streams))
    factors = [how.per_frame * (how.per_clip if clip_ends else 1.0) for how in forgettings]
    rows = torch.tensor(factors).repeat_interleave(num_streams).to(state.device)[:, None, None]
    return state.replace(layers=tuple(layer._replace(hidden=layer.hidden * rows) for layer in state.layers))


def state_rms(state: State, rows: slice) -> float:
    """Root of the mean square of some streams' recurrent states over blocks, patches and channels."""
    return float(torch.stack([layer.hidden[rows].square().mean() for layer in state.layers]).mean().sqrt())
