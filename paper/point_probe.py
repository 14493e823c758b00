"""Point tracking from frozen features: the paper's recurrent readout (section 5.3), for any encoder.

A `trecvit.model.readout_tracker.ReadoutTracker` contains a TRecViT; here any encoder gives the features, so that
encoders are compared by the same readout, trained alike on the same clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from trecvit.data.tracked import TrackedVideo, TrackedVideos, random_queries
from trecvit.draws import Stream, rng
from trecvit.errors import ConfigError
from trecvit.evaluate.features import Encoder
from trecvit.evaluate.tapvid import evaluate_tapvid
from trecvit.model.readouts import PointReadoutConfig, RecurrentPointReadout
from trecvit.model.tracker import TrackerOutput
from trecvit.synthetic.pictures import photographs
from trecvit.synthetic.track_scenes import TrackSceneConfig, TrackScenes
from trecvit.train.optimise import schedule
from trecvit.train.sections import Optimisation
from trecvit.train.track_loss import counted_frames, regressed_track_loss

_TRAINING_SEED, _TEST_SEED = 0, 1  # of the scenes
_FEATURES_AT_ONCE = 16  # clips


@dataclass(frozen=True, kw_only=True, slots=True)
class PointProbePlan:
    """Training and test of the readout.

    Attributes:
        scenes: Appearance of the clips; their length and size are the encoder's.
        train_scenes: Number of training scenes, repeated with new queries.
        test_scenes: Number of held-out scenes, of another seed and with photographs of the other split.
        num_steps: Updates.
        batch_size: Clips per update.
        learning_rate: Peak of a cosine after a warm-up of a tenth (paper, Table 12: 3e-4 with 200,000 steps). In the
            few steps of these defaults a higher one learns more.
        weight_decay: On all weights; a choice.
        readout: Sizes of the readout.
    """

    scenes: TrackSceneConfig
    train_scenes: int = 512
    test_scenes: int = 48
    num_steps: int = 500
    batch_size: int = 8
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    readout: PointReadoutConfig = field(
        default_factory=lambda: PointReadoutConfig(width=128, depth=2, num_heads=4, mlp_width=256)
    )

    def __post_init__(self) -> None:
        counts = (self.train_scenes, self.test_scenes, self.num_steps, self.batch_size)
        if min(counts) < 1 or not 0 < self.learning_rate < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"expected scenes, steps and clips per update of 1 or more, a rate above 0; got {self}")


def training_clips(plan: PointProbePlan, report: Callable[[int, int], None] = lambda *_: None) -> list[TrackedVideo]:
    """Render the training scenes, once for all readouts."""
    scenes = TrackScenes(plan.scenes, seed=_TRAINING_SEED, pictures=photographs("train"))
    clips = []
    for index, clip in enumerate(scenes.videos(range(plan.train_scenes))):
        clips.append(clip)
        report(index + 1, plan.train_scenes)
    return clips


class FrozenTracker:
    """A tracker, see `trecvit.model.tracker.Tracker`, of a frozen encoder and a trained readout.

    If tokens span several frames (VideoMAE's tubelets), each of these has the same tokens; the readout then has
    information on later frames, unlike with a TRecViT.

    Args:
        encoder: Encoder of clips.
        readout: Predicts the points from its features.
    """

    def __init__(self, encoder: Encoder, readout: RecurrentPointReadout) -> None:
        self.encoder, self.readout = encoder, readout

    @torch.no_grad()
    def __call__(self, video: Tensor, query_points_tyx: Tensor) -> TrackerOutput:
        """Predict points in pixels of the video, see `Tracker`."""
        return self.read(self.features(video), query_points_tyx, (video.shape[3], video.shape[4]))

    @torch.no_grad()
    def features(self, video: Tensor) -> Float[Tensor, "B T N D"]:
        """Features of each frame, float32."""
        tokens = self.encoder.features(video).float()
        return tokens.repeat_interleave(video.shape[1] // tokens.shape[1], dim=1)

    def read(
        self, features: Float[Tensor, "B T N D"], query_points_tyx: Float[Tensor, "B Q 3"], image_size: tuple[int, int]
    ) -> TrackerOutput:
        """Predict points from features.

        Args:
            features: Of clips.
            query_points_tyx: Frame, and place in pixels.
            image_size: Height and width of the frames.
        """
        size_xy = torch.tensor([image_size[1], image_size[0]], device=features.device)
        batch_size, num_queries = query_points_tyx.shape[:2]
        empty = torch.zeros(batch_size, num_queries, self.readout.config.width, device=features.device)
        frames, places_xy = query_points_tyx[..., 0].round().long(), query_points_tyx[..., [2, 1]] / size_xy
        points, _ = self.readout(features, places_xy, frames, empty)
        certainty = points.certainty_logits.sigmoid()
        return TrackerOutput(
            points.points_xy * size_xy, points.visible_logits, certainty, certainty_logits=points.certainty_logits
        )


def point_probe(
    encoder: Encoder,
    clips: Sequence[TrackedVideo],
    plan: PointProbePlan,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    report: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, float]:
    """Train a readout on the encoder's features and test it on held-out scenes.

    Args:
        encoder: The frozen encoder.
        clips: From `training_clips`.
        plan: Training and test.
        seed: Of initial weights, order and queries.
        device: Device of the readout.
        report: Called with the number of finished updates, and of all.

    Returns:
        TAP-Vid's metrics, means over the held-out scenes.
    """
    size = plan.scenes.image_size
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        width = int(encoder.features(_pixels(clips[:1])).shape[-1])
        tracker = FrozenTracker(encoder, RecurrentPointReadout(width, plan.readout).to(device))
    parts = [clips[first : first + _FEATURES_AT_ONCE] for first in range(0, len(clips), _FEATURES_AT_ONCE)]
    features = torch.cat([tracker.features(_pixels(part)).half().cpu() for part in parts])
    rates = Optimisation(num_steps=plan.num_steps, warmup_steps=plan.num_steps // 10)
    optimiser = torch.optim.AdamW(tracker.readout.parameters(), lr=plan.learning_rate, weight_decay=plan.weight_decay)
    draws = rng(seed, Stream.POINT_PROBE)
    for step in range(plan.num_steps):
        optimiser.param_groups[0]["lr"] = plan.learning_rate * schedule(step, rates, plan.num_steps)
        rows = draws.integers(len(clips), size=plan.batch_size)
        queries = torch.from_numpy(np.stack([random_queries(clips[row], draws) for row in rows])).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            points = tracker.read(features[rows].float().to(device), queries, size)
        assert points.certainty_logits is not None, "a readout predicts its certainty"
        visible = torch.from_numpy(np.stack([~clips[row].occluded for row in rows])).to(device)
        loss = regressed_track_loss(
            points_xy=points.points_xy,
            visible_logits=points.visible_logits,
            certainty_logits=points.certainty_logits,
            target_xy=torch.from_numpy(np.stack([clips[row].tracks_xy for row in rows])).to(device),
            visible=visible,
            counted=counted_frames(queries, visible.shape[2]),
            image_size=size,
        ).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        report(step + 1, plan.num_steps)
    scores, _ = evaluate_tapvid(tracker, held_out_videos(plan), image_size=size, device=device)
    return {name: float(value) for name, value in scores.means().items()}


def held_out_videos(plan: PointProbePlan) -> TrackedVideos:
    """The held-out scenes."""
    scenes = TrackScenes(plan.scenes, seed=_TEST_SEED, pictures=photographs("held_out"))
    return scenes.videos(range(plan.test_scenes))


def _pixels(clips: Sequence[TrackedVideo]) -> Tensor:
    return torch.from_numpy(np.stack([clip.video for clip in clips])).movedim(-1, 2).contiguous()
