"""Point tracking: TAPNext's or TAPIR's loss, depending on the tracker's head, tested by TAP-Vid's metrics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from trecvit.config import Preprocessing
from trecvit.data.clips import Failure
from trecvit.data.tapvid import read_track_files
from trecvit.data.tracked import TrackedVideo, TrackedVideos, random_queries
from trecvit.draws import Stream, rng
from trecvit.errors import ConfigError, DataError
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
from trecvit.processes import Processes, Share
from trecvit.synthetic.pictures import load_pictures, photographs
from trecvit.synthetic.track_scenes import TrackSceneConfig, TrackScenes
from trecvit.train.feed import Batch, Epochs, Feed, Steps
from trecvit.train.objective import Objective, PartLoss
from trecvit.train.run_data import files_fingerprint
from trecvit.train.sections import Settings, fields_of, require_range
from trecvit.train.task import Curves, Task
from trecvit.train.track_loss import classified_track_loss, counted_frames, matching_loss, regressed_track_loss
from trecvit.weights.load import load_as
from trecvit.workers import load_items

_EXAMPLES = 64
_NUM_POINTS = 32

Clip = tuple[Tensor, Tensor, Tensor, Tensor]  # of a `TrackBatch`, without its first axis


# ---- the recipe -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracks:
    """Clips with the tracks of points: rendered scenes or a folder of files, one of the two.

    Attributes:
        scenes: Appearance of the scenes. Length, size and number of points are those of the clips.
        easy_steps: Steps over which the share of easy scenes (`TrackSceneConfig.easy`) falls from 1 to 0.
        files: A folder, see `trecvit.data.tapvid.read_track_files`.
        num_points: Points Q of a clip, drawn from a file's visible ones; too few leave slots empty.
        first_share: Share of the points that are queried at their first visible frame, as in TAP-Vid; the others at a
            random visible one.
        photographs: Whether the scenes' textures are also cut from photographs (scikit-image's, the training split).
        pictures: A folder of additional pictures and cut-out sprites for the scenes.
        seed: Of the scenes.
        validation_scenes: Number of scenes to test on: of another seed, with photographs of the other split.
        validation_seed: Of these scenes.
        validation_files: A folder of files to test on instead.
        validate_every: Steps between two tests; the best tracker is kept. 0: only the trained one is tested.
        max_failed_share: Largest share of unreadable files; the run stops at more.
    """

    scenes: TrackSceneConfig | None = None
    easy_steps: int = 0
    files: str = ""
    num_points: int = _NUM_POINTS
    first_share: float = 0.5
    photographs: bool = True
    pictures: str = ""
    seed: int = 0
    validation_scenes: int = 0
    validation_seed: int = 1
    validation_files: str = ""
    validate_every: int = 0
    max_failed_share: float = 0.01

    def __post_init__(self) -> None:
        if (self.scenes is None) == (not self.files):
            raise ConfigError("tracks: expected `scenes` or `files`, one of them")
        require_range("tracks", self, ("validation_scenes", "validate_every"))
        require_range("tracks", self, ("max_failed_share",), most=1.0)
        if self.validation_scenes and self.validation_files:
            raise ConfigError("tracks: expected `validation_scenes` or `validation_files`, not both")
        if self.easy_steps < 0 or (self.easy_steps and self.scenes is None):
            raise ConfigError(f"tracks.easy_steps: expected 0, or more with tracks.scenes, got {self.easy_steps}")
        if self.num_points < 1 or not 0 <= self.first_share <= 1:
            raise ConfigError(
                "tracks: expected num_points >= 1 and first_share from 0 to 1, got "
                f"{self.num_points} and {self.first_share}"
            )
        if min(self.seed, self.validation_seed) < 0 or self.seed == self.validation_seed:
            raise ConfigError(
                "tracks: expected seed and validation_seed of 0 or more that differ, got "
                f"{self.seed} and {self.validation_seed}"
            )
        if self.validation_scenes and self.scenes is None:
            raise ConfigError("tracks.validation_scenes: there are no tracks.scenes that describe their appearance")
        if self.validate_every and not (self.validation_scenes or self.validation_files):
            raise ConfigError("tracks.validate_every: there are no validation_scenes or validation_files to test on")

    @classmethod
    def from_value(cls, value: Any, preprocessing: Preprocessing) -> Tracks:
        """Read the section of a recipe with clips of this `preprocessing`."""
        values = fields_of(cls, value, "tracks")
        if (scenes := values.pop("scenes", None)) is not None:
            scenes = {
                "num_frames": preprocessing.num_frames,
                "image_size": preprocessing.image_size,
                "num_points": values.get("num_points", _NUM_POINTS),
                **fields_of(TrackSceneConfig, scenes, "tracks.scenes"),
            }
            values["scenes"] = TrackSceneConfig(**{**scenes, "image_size": tuple(scenes["image_size"])})
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class TrackTask(Task):
    """Tracking of points.

    Attributes:
        tracks: Clips with tracks, and the tests.
    """

    sections = ("tracks",)
    curves = Curves("average_pts_within_thresh", "δ-average", "average_jaccard", "average Jaccard")
    trains_tracker = True

    tracks: Tracks

    @classmethod
    def from_sections(cls, sections: Mapping[str, Any], settings: Settings) -> TrackTask:
        """Read the task, see `Task`."""
        return cls(tracks=Tracks.from_value(sections["tracks"], settings.preprocessing))

    def to_dict(self) -> dict[str, Any]:
        """The section `tracks`."""
        return dataclasses.asdict(self)

    def check(self, settings: Settings) -> None:
        """Raises ConfigError for a classifier, a ViT, skipped frames, and scenes that are not as long as the clips."""
        super().check(settings)
        if settings.start.vit:
            raise ConfigError("start.vit: expected none for a tracker; give start.weights instead")
        clips = settings.preprocessing
        if clips.frame_stride != 1:
            raise ConfigError(
                f"preprocessing.frame_stride: expected 1 (a tracker sees every frame), got {clips.frame_stride}"
            )
        if (scenes := self.tracks.scenes) is None:
            return
        expected = (clips.num_frames, clips.image_size, self.tracks.num_points)
        rendered = (scenes.num_frames, scenes.image_size, scenes.num_points)
        if expected != rendered:
            raise ConfigError(
                f"tracks.scenes: num_frames, image_size and num_points {rendered} must be those of preprocessing and "
                f"tracks, {expected}; leave them out"
            )
        settings.require_num_steps("scenes")

    @property
    def origin(self) -> str:
        """The folder of files; empty for scenes."""
        return self.tracks.files

    @property
    def evaluates(self) -> bool:
        """Whether there are scenes or files to test on."""
        return bool(self.tracks.validation_scenes or self.tracks.validation_files)

    @property
    def validate_every(self) -> int:
        """Steps between two tests, see `Tracks`."""
        return self.tracks.validate_every

    def feed(self, settings: Settings) -> TrackFeed:
        """Clips with tracks."""
        return TrackFeed(settings, self.tracks)

    def objective(self, settings: Settings) -> Tracking:
        """The loss of the tracker's head."""
        return Tracking(settings.preprocessing.image_size, self.validation())

    def validation(self) -> TrackedVideos | None:
        """Videos to test on: files, or scenes of another seed with other photographs."""
        tracks = self.tracks
        if tracks.validation_files:
            return read_track_files(tracks.validation_files)
        if not tracks.validation_scenes or tracks.scenes is None:
            return None
        pictures = photographs("held_out") if tracks.photographs else []
        scenes = TrackScenes(tracks.scenes, seed=tracks.validation_seed, pictures=pictures)
        return scenes.videos(range(tracks.validation_scenes))

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Of the files and the additional pictures."""
        tracks = self.tracks
        folders = {"training": tracks.files, "validation": tracks.validation_files, "pictures": tracks.pictures}
        return {split: files_fingerprint(folder) for split, folder in folders.items() if folder}

    def untested(self) -> TrackTask:
        """Without scenes or files to test on."""
        return replace(self, tracks=replace(self.tracks, validation_files="", validation_scenes=0, validate_every=0))


# ---- batches --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrackBatch(Batch):
    """Clips and the tracks of Q points in each. Places are in pixels, see `trecvit.data.tracked`.

    Attributes:
        query_points_tyx: float32 `[B, Q, 3]`; the frame of an empty slot, which does not count, is infinite.
        tracks_xy: float32 `[B, Q, T, 2]`.
        visible: bool `[B, Q, T]`.
    """

    query_points_tyx: Tensor
    tracks_xy: Tensor
    visible: Tensor

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Video and query points."""
        return (self.videos, self.query_points_tyx)


class TrackFeed(Feed[TrackBatch]):
    """Batches of clips with tracks: scenes, each shown once; or files, each once per epoch, see `Epochs`.

    Args:
        settings: Of the recipe.
        tracks: Its section.
    """

    def __init__(self, settings: Settings, tracks: Tracks) -> None:
        plan = settings.optimisation
        self.batch_size, self.num_workers = plan.batch_size, settings.num_workers
        self.max_failed_share = tracks.max_failed_share
        self.clips = TrackClips(settings, tracks)
        self.epochs: Epochs | None = None
        num_steps = plan.num_steps
        if isinstance(self.clips.source, TrackedVideos):
            self.epochs = Epochs(len(self.clips.source), plan.batch_size, seed=settings.seed)
            if not self.epochs.steps_per_epoch:
                raise DataError(
                    f"{tracks.files}: {len(self.clips.source)} files do not fill one batch of {plan.batch_size}; take "
                    "a smaller batch_size"
                )
            num_steps = num_steps or plan.epochs * self.epochs.steps_per_epoch
        super().__init__(labels=(), num_steps=num_steps)

    def items(self, step: int) -> list[tuple[int, int]]:
        """The epoch and the index of each clip of a step."""
        if self.epochs is not None:
            return self.epochs.items(step)
        return [(0, step * self.batch_size + place) for place in range(self.batch_size)]

    def batches(self, first_step: int, share: Share) -> Iterator[TrackBatch]:
        """The share of a process in each step."""
        yield from load_items(
            self.clips,
            num_workers=self.num_workers,
            prefetch_factor=2,
            batch_sampler=Steps(self.items, range(first_step, self.num_steps), share),
            collate_fn=_collate,
        )

    def accept(self, failed: Mapping[str, str]) -> None:
        """Raises DataError for more than the recipe's share of the files."""
        num_files = self.epochs.num_files if self.epochs is not None else 0
        if len(failed) > self.max_failed_share * num_files:
            name, reason = next(iter(failed.items()))
            raise DataError(
                f"{len(failed)} files with tracks could not be read, more than max_failed_share="
                f"{self.max_failed_share:g} allows, such as {name}: {reason}"
            )

    def examples(self) -> UInt8[Tensor, "b t 3 h w"]:
        """The clips of the first steps, about 64."""
        num_steps = min(-(-_EXAMPLES // self.batch_size), self.num_steps)
        return _collate([self.clips[item] for step in range(num_steps) for item in self.items(step)]).videos


class TrackClips(Dataset[Clip | Failure]):
    """(epoch, index) -> a clip of the scene or file `index`, and its queried points.

    Args:
        settings: Of the recipe.
        tracks: Its section.
    """

    def __init__(self, settings: Settings, tracks: Tracks) -> None:
        self.preprocessing, self.seed = settings.preprocessing, settings.seed
        self.num_points, self.first_share = tracks.num_points, tracks.first_share
        self.source: TrackScenes | TrackedVideos
        self.easy_scenes: TrackScenes | None = None
        self.num_easy = tracks.easy_steps * settings.optimisation.batch_size
        if tracks.scenes is None:
            self.source = read_track_files(tracks.files)
        else:
            pictures = photographs("train") if tracks.photographs else []
            pictures += load_pictures(tracks.pictures) if tracks.pictures else []
            self.source = TrackScenes(tracks.scenes, seed=tracks.seed, pictures=pictures)
            self.easy_scenes = TrackScenes(tracks.scenes.easy(), seed=tracks.seed, pictures=pictures)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> Clip | Failure:
        epoch, index = epoch_and_index
        draws = rng(self.seed, Stream.QUERIES, epoch, index)
        try:
            video = self._cut(self._source(index)[index], draws)
        except DataError as exc:
            names = self.source.names if isinstance(self.source, TrackedVideos) else {index: f"scene {index}"}
            return Failure(names[index], str(exc))
        return self._queried(video, draws)

    def _source(self, index: int) -> TrackScenes | TrackedVideos:
        """Easy scenes with a share that falls from 1 to 0 over the first `easy_steps`."""
        draw = rng(self.seed, Stream.TRACK_EASY, index).random()
        if self.easy_scenes is not None and draw * self.num_easy > index:
            return self.easy_scenes
        return self.source

    def _cut(self, video: TrackedVideo, draws: np.random.Generator) -> TrackedVideo:
        """Random successive frames of the video, as many as a clip has, in a clip's size."""
        length = self.preprocessing.num_frames
        if video.num_frames < length:
            raise DataError(f"{video.name}: expected at least num_frames={length} frames, got {video.num_frames}")
        first = int(draws.integers(video.num_frames - length + 1))
        frames = slice(first, first + length)
        cut = replace(
            video,
            video=video.video[frames],
            tracks_xy=video.tracks_xy[:, frames],
            occluded=video.occluded[:, frames],
            query_points_tyx=None,
        )
        return cut.resized(self.preprocessing.image_size)

    def _queried(self, video: TrackedVideo, draws: np.random.Generator) -> Clip:
        """Draw points that the clip shows, and for each a query at a frame that shows it."""
        shown = np.nonzero(~video.occluded.all(axis=1))[0]
        chosen = draws.permutation(shown)[: self.num_points]
        video = replace(video, tracks_xy=video.tracks_xy[chosen], occluded=video.occluded[chosen])
        queries = np.full((self.num_points, 3), math.inf, np.float32)
        tracks_xy = np.zeros((self.num_points, video.num_frames, 2), np.float32)
        visible = np.zeros((self.num_points, video.num_frames), bool)
        if len(chosen):
            given = random_queries(video, draws)
            firsts = np.nonzero(draws.random(len(chosen)) < self.first_share)[0]
            frames = (~video.occluded[firsts]).argmax(axis=1)
            given[firsts, 0] = frames
            given[firsts, 1:] = video.tracks_xy[firsts, frames, ::-1]
            # In files a visible point may lie a little outside of the frame.
            given[:, 1:] = given[:, 1:].clip(0, video.video.shape[1:3])
            queries[: len(chosen)] = given
            tracks_xy[: len(chosen)] = video.tracks_xy
            visible[: len(chosen)] = ~video.occluded
        pixels = torch.from_numpy(video.video).permute(0, 3, 1, 2).contiguous()
        return pixels, torch.from_numpy(queries), torch.from_numpy(tracks_xy), torch.from_numpy(visible)


def _collate(items: Sequence[Clip | Failure]) -> TrackBatch:
    failures = tuple(item for item in items if isinstance(item, Failure))
    clips = [item for item in items if not isinstance(item, Failure)]
    if not clips:
        empty = torch.zeros(0)
        return TrackBatch(empty, empty, empty, empty, failures=failures)
    return TrackBatch(*(torch.stack(column) for column in zip(*clips, strict=True)), failures=failures)


# ---- loss and tests -------------------------------------------------------------------------------------------------


class Tracking(Objective[TrackBatch, TrackerOutput]):
    """Mean over a clip's points and frames; clips have equal weights.

    The figures are TAP-Vid's, of the frames after each query, over all points of the batch; a test averages over each
    video's points first.

    Args:
        image_size: Height and width of the clips.
        validation: Videos to test on.
    """

    figures = ("average_pts_within_thresh", "occlusion_accuracy")
    score = "average_jaccard"

    def __init__(self, image_size: tuple[int, int], validation: TrackedVideos | None) -> None:
        self.image_size, self.validation = image_size, validation

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
        """Sum of the clips' losses, and TAP-Vid's counts."""
        counted = counted_frames(part.query_points_tyx, part.videos.shape[1])
        total = torch.zeros((), device=part.videos.device)
        for clip in range(len(part)):
            total = total + self._clip_loss(out, part, counted, slice(clip, clip + 1))
        return PartLoss(total, self._shares(out, part))

    def _clip_loss(self, out: TrackerOutput, part: TrackBatch, counted: Tensor, row: slice) -> Tensor:
        """TAPNext's loss, plus matching's, for a head with scores over coordinates; else TAPIR's."""
        common: dict[str, Any] = {
            "points_xy": out.points_xy[row],
            "visible_logits": out.visible_logits[row],
            "target_xy": part.tracks_xy[row],
            "visible": part.visible[row],
            "counted": counted[row],
            "image_size": self.image_size,
        }
        if out.coordinate_logits is not None:
            total = classified_track_loss(**common, coordinate_logits=out.coordinate_logits[row]).total
            if out.similarity is None:
                return total
            placed = {name: common[name] for name in ("target_xy", "visible", "counted", "image_size")}
            return total + matching_loss(Similarity(*(scores[row] for scores in out.similarity)), **placed)
        assert out.certainty_logits is not None, "a tracker has scores over coordinates or a certainty"
        return regressed_track_loss(**common, certainty_logits=out.certainty_logits[row]).total

    @torch.no_grad()
    def _shares(self, out: TrackerOutput, part: TrackBatch) -> Tensor:
        after = torch.arange(part.videos.shape[1], device=part.videos.device) > part.query_points_tyx[..., :1]
        placed = part.visible & after
        height, width = self.image_size
        to_raster = torch.tensor([IMAGE_SIZE[1] / width, IMAGE_SIZE[0] / height], device=placed.device)
        off_px = ((out.points_xy - part.tracks_xy) * to_raster).norm(dim=-1)
        within = torch.stack([((off_px < threshold) & placed).sum() for threshold in THRESHOLDS_PX])
        correct = (out.visible == part.visible) & after
        rows = [torch.stack([within.double().mean(), placed.sum()]), torch.stack([correct.sum(), after.sum()])]
        return torch.stack([row.double() for row in rows]).cpu()

    def test(self, model: Path, processes: Processes) -> dict[str, float | int]:
        """AJ, delta-average and OA in the first process; empty in the others."""
        if not processes.first:
            return {}
        scores, failures = self._scores(model, processes)
        means = scores.means()
        names = ("average_jaccard", "average_pts_within_thresh", "occlusion_accuracy")
        return {**{name: means[name] for name in names}, "videos": len(scores.names), "failed": len(failures)}

    def evaluate(self, model: Path, folder: Path, processes: Processes) -> None:
        """Write all metrics of the same test, with a row per video."""
        if self.validation is None or not processes.first:
            return
        scores, failures = self._scores(model, processes)
        description = tapvid_protocol(
            self.validation, tracker=str(model), query_mode="first", image_size=self.image_size
        )
        write_tapvid_result(folder, scores, description, failures)

    def _scores(self, model: Path, processes: Processes) -> tuple[TapvidScores, list[Failure]]:
        assert self.validation is not None, "a task that validates has videos to test on"
        tracker = load_as(PointTracker, model, device=processes.device)
        return evaluate_tapvid(tracker, self.validation, image_size=self.image_size, device=processes.device)
