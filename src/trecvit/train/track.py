"""Training to track points: TAPNext's loss or TAPIR's, as the tracker has it, tested by TAP-Vid's metrics."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trecvit.config import Preprocessing
from trecvit.data.clips import Failure
from trecvit.data.tapvid import read_track_files
from trecvit.data.tracked import TrackedVideos
from trecvit.evaluate.tapvid import (
    IMAGE_SIZE,
    THRESHOLDS_PX,
    TapvidScores,
    evaluate_tapvid,
    tapvid_protocol,
    write_tapvid_result,
)
from trecvit.model.matching import Similarity
from trecvit.model.tracker import PointTracker, TrackerOutput
from trecvit.processes import Processes
from trecvit.synthetic.pictures import photographs
from trecvit.synthetic.track_scenes import TrackScenes
from trecvit.train.feed import TrackBatch
from trecvit.train.objective import Objective, PartLoss
from trecvit.train.recipe import Recipe
from trecvit.train.sections import Tracks
from trecvit.train.track_loss import classified_track_loss, counted_frames, matching_loss, regressed_track_loss
from trecvit.weights.load import load_as


class Tracking(Objective[TrackBatch, TrackerOutput]):
    """Each clip's loss is the mean over what counts in it; clips count alike.

    The figures are TAP-Vid's, of the frames after each query, over all points of the batch; where a test averages first
    over the points of a video.

    Args:
        recipe: With `tracks`.
        validation: What to test on, if there is anything, see `validation_of`.
    """

    figures = ("average_pts_within_thresh", "occlusion_accuracy")
    score = "average_jaccard"

    def __init__(self, recipe: Recipe, validation: TrackedVideos | None) -> None:
        self.image_size = recipe.preprocessing.image_size
        self.validation = validation

    def blank(self, preprocessing: Preprocessing, device: torch.device) -> TrackBatch:
        """A black clip with one empty slot."""
        num_frames, image_size = preprocessing.num_frames, preprocessing.image_size
        return TrackBatch(
            torch.zeros(1, num_frames, 3, *image_size, dtype=torch.uint8, device=device),
            torch.full((1, 1, 3), math.inf, device=device),
            torch.zeros(1, 1, num_frames, 2, device=device),
            torch.zeros(1, 1, num_frames, dtype=torch.bool, device=device),
        )

    def loss(self, out: TrackerOutput, part: TrackBatch) -> PartLoss:
        """The clips' losses, and what TAP-Vid's metrics count."""
        counted = counted_frames(part.query_points_tyx, part.videos.shape[1])
        total = torch.zeros((), device=part.videos.device)
        for clip in range(len(part)):
            total = total + self._loss_of_one(out, part, counted, slice(clip, clip + 1))
        return PartLoss(total, self._shares(out, part))

    def _loss_of_one(self, out: TrackerOutput, part: TrackBatch, counted: Tensor, one: slice) -> Tensor:
        """One clip's loss: TAPNext's, and matching's, where a place is read off scores, else TAPIR's."""
        about: dict[str, Any] = {
            "points_xy": out.points_xy[one],
            "visible_logits": out.visible_logits[one],
            "target_xy": part.tracks_xy[one],
            "visible": part.visible[one],
            "counted": counted[one],
            "image_size": self.image_size,
        }
        if out.coordinate_logits is not None:
            total = classified_track_loss(**about, coordinate_logits=out.coordinate_logits[one]).total
            if out.similarity is None:
                return total
            placed = {name: about[name] for name in ("target_xy", "visible", "counted", "image_size")}
            return total + matching_loss(Similarity(*(scores[one] for scores in out.similarity)), **placed)
        assert out.certainty_logits is not None, "a tracker has scores of places, or tells how sure it is"
        return regressed_track_loss(**about, certainty_logits=out.certainty_logits[one]).total

    @torch.no_grad()
    def _shares(self, out: TrackerOutput, part: TrackBatch) -> Tensor:
        after = torch.arange(part.videos.shape[1], device=part.videos.device) > part.query_points_tyx[..., :1]
        placed = part.visible & after
        height, width = self.image_size
        to_raster = torch.tensor([IMAGE_SIZE[1] / width, IMAGE_SIZE[0] / height], device=placed.device)
        off_px = ((out.points_xy - part.tracks_xy) * to_raster).norm(dim=-1)
        within = torch.stack([((off_px < threshold) & placed).sum() for threshold in THRESHOLDS_PX])
        told = (out.visible == part.visible) & after
        rows = [torch.stack([within.double().mean(), placed.sum()]), torch.stack([told.sum(), after.sum()])]
        return torch.stack([row.double() for row in rows]).cpu()

    def test(self, model: Path, processes: Processes) -> dict[str, float | int]:
        """AJ, delta-average and OA; the first process does it by itself, the others get nothing."""
        if not processes.first:
            return {}
        scores, failures = self._scores(model, processes)
        means = scores.means()
        names = ("average_jaccard", "average_pts_within_thresh", "occlusion_accuracy")
        return {**{name: means[name] for name in names}, "videos": len(scores.names), "failed": len(failures)}

    def evaluate(self, model: Path, folder: Path, processes: Processes) -> None:
        """The same test as on the way, written with all its metrics and a row per video."""
        if self.validation is None or not processes.first:
            return
        scores, failures = self._scores(model, processes)
        said = tapvid_protocol(self.validation, tracker=str(model), query_mode="first", image_size=self.image_size)
        write_tapvid_result(folder, scores, said, failures)

    def _scores(self, model: Path, processes: Processes) -> tuple[TapvidScores, list[Failure]]:
        assert self.validation is not None, "a recipe that validates has something to test on"
        tracker = load_as(PointTracker, model, device=processes.device)
        return evaluate_tapvid(tracker, self.validation, image_size=self.image_size, device=processes.device)


def validation_of(tracks: Tracks) -> TrackedVideos | None:
    """What a recipe's tracker is tested on: files, or scenes of another seed with other photographs."""
    if tracks.validation_files:
        return read_track_files(tracks.validation_files)
    if not tracks.validation_scenes or tracks.scenes is None:
        return None
    pictures = photographs("held_out") if tracks.photographs else []
    scenes = TrackScenes(tracks.scenes, seed=tracks.validation_seed, pictures=pictures)
    return scenes.videos(range(tracks.validation_scenes))
