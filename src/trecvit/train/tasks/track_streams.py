"""Point tracking as it streams: truncated backpropagation through states that are carried over long scenes."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from trecvit.config import Preprocessing
from trecvit.data.tracked import TrackedVideo, TrackedVideos
from trecvit.draws import Stream, rng
from trecvit.errors import ConfigError
from trecvit.evaluate.tapvid import THRESHOLDS_PX, TapvidScores, evaluate_tapvid, tapvid_protocol, write_tapvid_result
from trecvit.model.local_tracker import LocalState, LocalTracker, LocalTrackerConfig
from trecvit.model.tracker import PointTracker, TrackerOutput
from trecvit.processes import Processes, Share
from trecvit.synthetic.long_scenes import LongSceneConfig, LongScenes, pictures_of
from trecvit.synthetic.pictures import photographs
from trecvit.train.feed import Batch, Feed
from trecvit.train.local_loss import local_track_loss
from trecvit.train.objective import Objective, PartLoss
from trecvit.train.run_data import files_fingerprint
from trecvit.train.sections import Settings, fields_of, require_range
from trecvit.train.task import Curves, Task
from trecvit.weights.load import load_as
from trecvit.workers import load_items

_RASTER_PX = 256
_LOST_PX = 5.0
_BROUGHT_BACK = 0.6  # share of the lost points in each chunk
_VALIDATION_FRAMES = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackStreams:
    """Streams of long scenes, in chunks of `preprocessing.num_frames` frames; a step sees one chunk of each stream.

    Attributes:
        scenes: Appearance of the scenes; their pixels are those of frames of `preprocessing.image_size`.
        chunks: Chunks of a scene in each stream, as many streams as the batch holds clips.
        sources: A folder of videos and pictures for backgrounds and things, beside scikit-image's photographs.
        first_share: Share of the points that are queried where they are first visible; the others join later.
        seed: Of the scenes.
        validation_scenes: Scenes to test on: of another seed, with other photographs, 64 whole frames.
        validation_seed: Of these scenes.
        validate_every: Steps between two tests; the best tracker is kept. 0: only the trained one is tested.
    """

    scenes: LongSceneConfig = dataclasses.field(default_factory=LongSceneConfig)
    chunks: tuple[int, ...] = (3, 6, 12, 24)
    sources: str = ""
    first_share: float = 0.7
    seed: int = 0
    validation_scenes: int = 0
    validation_seed: int = 1
    validate_every: int = 0

    def __post_init__(self) -> None:
        require_range("track_streams", self, ("validation_scenes", "validate_every", "seed", "validation_seed"))
        require_range("track_streams", self, ("first_share",), most=1.0)
        if not self.chunks or min(self.chunks) < 1:
            raise ConfigError(f"track_streams.chunks: expected numbers of 1 or more, got {list(self.chunks)}")
        if self.seed == self.validation_seed:
            raise ConfigError(f"track_streams: expected seed and validation_seed that differ, got {self.seed} for both")
        if self.validate_every and not self.validation_scenes:
            raise ConfigError("track_streams.validate_every: there are no validation_scenes to test on")

    @classmethod
    def from_value(cls, value: Any) -> TrackStreams:
        """Read the section of a recipe."""
        values = fields_of(cls, value, "track_streams")
        scenes = fields_of(LongSceneConfig, values.pop("scenes", {}), "track_streams.scenes")
        if "image_size" in scenes:
            scenes["image_size"] = tuple(scenes["image_size"])
        if "chunks" in values:
            values["chunks"] = tuple(values["chunks"])
        return cls(scenes=LongSceneConfig(**scenes), **values)


@dataclass(frozen=True, kw_only=True)
class TrackStreamsTask(Task):
    """Tracking of points in streams.

    Attributes:
        streams: Scenes, and the tests.
    """

    sections = ("track_streams",)
    curves = Curves("average_pts_within_thresh", "δ-average", "average_jaccard", "average Jaccard")
    trains_tracker = True

    streams: TrackStreams

    @classmethod
    def from_sections(cls, sections: Mapping[str, Any], settings: Settings) -> TrackStreamsTask:
        """Read the task, see `Task`."""
        return cls(streams=TrackStreams.from_value(sections["track_streams"]))

    def to_dict(self) -> dict[str, Any]:
        """The section `track_streams`."""
        return {"track_streams": dataclasses.asdict(self.streams)}

    def check(self, settings: Settings) -> None:
        """Raises ConfigError for another model, a batch without a stream for each clip, and gradient accumulation."""
        super().check(settings)
        if not isinstance(settings.model, LocalTrackerConfig):
            raise ConfigError(
                "track_streams: expected a model with `fine_width` (a LocalTracker); others take `tracks`"
            )
        plan = settings.optimisation
        if plan.batch_size != len(self.streams.chunks):
            raise ConfigError(
                f"optimisation.batch_size: expected one clip for each of {len(self.streams.chunks)} streams in "
                f"track_streams.chunks, got {plan.batch_size}"
            )
        if plan.accumulation != 1:
            raise ConfigError(f"optimisation.accumulation: expected 1 for track_streams, got {plan.accumulation}")
        settings.require_num_steps("streams")

    @property
    def origin(self) -> str:
        """The folder of pictures; empty for none."""
        return self.streams.sources

    @property
    def evaluates(self) -> bool:
        """Whether there are scenes to test on."""
        return self.streams.validation_scenes > 0

    @property
    def validate_every(self) -> int:
        """Steps between two tests, see `TrackStreams`."""
        return self.streams.validate_every

    def feed(self, settings: Settings) -> StreamFeed:
        """Chunks of the streams."""
        return StreamFeed(settings, self.streams)

    def objective(self, settings: Settings) -> StreamTracking:
        """The loss of a tracker that matches locally."""
        return StreamTracking(settings, self.streams)

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Of the folder of pictures."""
        return {"pictures": files_fingerprint(self.streams.sources)} if self.streams.sources else {}

    def untested(self) -> TrackStreamsTask:
        """Without scenes to test on."""
        return replace(self, streams=replace(self.streams, validation_scenes=0, validate_every=0))


@dataclass(frozen=True)
class StreamBatch(Batch):
    """The next chunk of each stream, and the tracks of Q points in it.

    Attributes:
        query_points_tyx: float32 `[B, Q, 3]`; frames count from the scene's first.
        tracks_xy: float32 `[B, Q, T, 2]`, also of hidden points.
        visible: bool `[B, Q, T]`.
        first_frames: int64 `[B]`, the frame of the scene that the chunk begins with; 0 for a new scene.
    """

    query_points_tyx: Tensor
    tracks_xy: Tensor
    visible: Tensor
    first_frames: Tensor

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Video and query points."""
        return (self.videos, self.query_points_tyx)


class StreamFeed(Feed[StreamBatch]):
    """Chunks of streams of scenes: step s is the s-th chunk of each stream.

    Args:
        settings: Of the recipe.
        streams: Its section.
    """

    def __init__(self, settings: Settings, streams: TrackStreams) -> None:
        super().__init__(labels=(), num_steps=settings.optimisation.num_steps)
        self.num_workers = min(settings.num_workers, 1)  # each worker would render every scene
        self.chunks = _Chunks(streams, settings.preprocessing.num_frames)

    def batches(self, first_step: int, share: Share) -> Iterator[StreamBatch]:
        """The share of a process in each step."""
        yield from load_items(
            _Shared(self.chunks, share),
            num_workers=self.num_workers,
            prefetch_factor=2,
            sampler=range(first_step, self.num_steps),
            batch_size=None,
        )

    def accept(self, failed: Mapping[str, str]) -> None:
        """Check that nothing failed: scenes are rendered, not read."""
        assert not failed, failed

    def examples(self) -> UInt8[Tensor, "b t 3 h w"]:
        """The chunks of the first steps."""
        return torch.cat([self.chunks.batch(step, range(len(self.chunks.streams.chunks))).videos for step in range(4)])


class _Chunks:
    """(step, streams) -> the chunks of these streams; the latest scene of each is kept."""

    def __init__(self, streams: TrackStreams, num_frames: int) -> None:
        self.streams, self.num_frames = streams, num_frames
        pictures = photographs("train") + (pictures_of(streams.sources) if streams.sources else [])
        self.scenes = LongScenes(streams.scenes, seed=streams.seed, pictures=pictures)
        self._latest: OrderedDict[tuple[int, int], tuple[TrackedVideo, np.ndarray]] = OrderedDict()

    def batch(self, step: int, numbers: Sequence[int]) -> StreamBatch:
        columns = zip(*(self._chunk(step, number) for number in numbers), strict=True)
        return StreamBatch(*(torch.stack(column) for column in columns))

    def _chunk(self, step: int, number: int) -> tuple[Tensor, ...]:
        scene, chunk = divmod(step, self.streams.chunks[number])
        video, queries = self._scene(number, scene)
        frames = slice(chunk * self.num_frames, (chunk + 1) * self.num_frames)
        pixels = torch.from_numpy(video.video[frames]).permute(0, 3, 1, 2).contiguous()
        return (
            pixels,
            torch.from_numpy(queries),
            torch.from_numpy(video.tracks_xy[:, frames]),
            torch.from_numpy(~video.occluded[:, frames]),
            torch.tensor(frames.start),
        )

    def _scene(self, number: int, scene: int) -> tuple[TrackedVideo, np.ndarray]:
        if (number, scene) not in self._latest:
            # Streams have scenes of their own.
            index = scene * len(self.streams.chunks) + number
            video = self.scenes.video(index, self.streams.chunks[number] * self.num_frames)
            self._latest[number, scene] = video, self._queries(video, index)
            if len(self._latest) > len(self.streams.chunks):
                self._latest.popitem(last=False)
        self._latest.move_to_end((number, scene))
        return self._latest[number, scene]

    def _queries(self, video: TrackedVideo, index: int) -> np.ndarray:
        """Most points' queries are moved to the frame that first shows them."""
        assert video.query_points_tyx is not None, "scenes have queries"
        queries = video.query_points_tyx.copy()
        chosen = rng(self.streams.seed, Stream.LONG_QUERIES, index).random(len(queries)) < self.streams.first_share
        frames = (~video.occluded[chosen]).argmax(axis=1)
        queries[chosen, 0] = frames
        queries[chosen, 1:] = video.tracks_xy[chosen, frames, ::-1].clip(0, np.array(video.video.shape[1:3]))
        return queries


class _Shared(Dataset[StreamBatch]):
    """Step -> the chunks of a process's streams."""

    def __init__(self, chunks: _Chunks, share: Share) -> None:
        self.chunks = chunks
        self.numbers = share.of(range(len(chunks.streams.chunks)))

    def __len__(self) -> int:
        return 2**31

    def __getitem__(self, step: int) -> StreamBatch:
        return self.chunks.batch(step, self.numbers)


class StreamTracking(Objective[StreamBatch, TrackerOutput]):
    """Mean over each chunk's points and frames; the figures are TAP-Vid's, over the points of the batch.

    The states that the chunks end with are kept for the next step, without their graph. A run that is resumed in the
    middle of a scene begins with a state from the chunk's first frame: points whose query is past are lost until then.

    Args:
        settings: Of the recipe.
        streams: Its section.
    """

    figures = ("average_pts_within_thresh", "occlusion_accuracy")
    score = "average_jaccard"

    def __init__(self, settings: Settings, streams: TrackStreams) -> None:
        self.streams, self.image_size = streams, streams.scenes.image_size
        self.model: LocalTracker | None = None
        self.state: LocalState | None = None

    def prepare(self, model: Any) -> None:
        """Remember the model, whose states are kept."""
        assert isinstance(model, LocalTracker), "checked by the recipe"
        self.model = model

    def output(self, network: Any, part: StreamBatch) -> TrackerOutput:
        """Continue the streams; those of new scenes begin afresh."""
        assert self.model is not None, "prepare was called"
        if not len(part.query_points_tyx):
            return super().output(network, part)
        begun = self.model.init_state(part.query_points_tyx, image_size=self.image_size)
        assert isinstance(begun, LocalState), "as a LocalTracker's is"
        begun = begun.replace(frames_seen=part.first_frames)
        state = begun if self.state is None else _merged(begun, self.state, part.first_frames == 0)
        out, after = self.model.step(part.videos, self._brought_back(state, part))
        assert isinstance(after, LocalState), "as a LocalTracker's is"
        self.state = after.detach()
        return out

    def _brought_back(self, state: LocalState, part: StreamBatch) -> LocalState:
        """Move some of the points that are lost, but visible, to where they are in the first frame of the chunk.

        Without this nearly all points would be lost in most frames of a long scene, as long as the tracker is bad. The
        others stay lost, so that it learns to find them again.
        """
        assert self.model is not None, "prepare was called"
        truth = part.tracks_xy[:, :, 0]
        is_lost = (self.model.last_places(state) - truth).norm(dim=-1) > _LOST_PX
        chosen = is_lost & part.visible[:, :, 0] & (part.query_points_tyx[..., 0] < part.first_frames[:, None])
        return self.model.moved_to(state, truth, chosen & (torch.rand_like(truth[..., 0]) < _BROUGHT_BACK))

    def blank(self, preprocessing: Preprocessing, device: torch.device) -> StreamBatch:
        """A black clip with one empty slot."""
        num_frames = preprocessing.num_frames
        return StreamBatch(
            torch.zeros(1, num_frames, 3, *self.image_size, dtype=torch.uint8, device=device),
            torch.full((1, 1, 3), torch.inf, device=device),
            torch.zeros(1, 1, num_frames, 2, device=device),
            torch.zeros(1, 1, num_frames, dtype=torch.bool, device=device),
            torch.zeros(1, dtype=torch.int64, device=device),
        )

    def loss(self, out: TrackerOutput, part: StreamBatch) -> PartLoss:
        """Loss times the number of clips, and TAP-Vid's counts."""
        frames = part.first_frames[:, None] + torch.arange(part.videos.shape[1], device=part.videos.device)
        counted = frames[:, None] >= part.query_points_tyx[..., :1]
        after = frames[:, None] > part.query_points_tyx[..., :1]
        loss = local_track_loss(
            out,
            target_xy=part.tracks_xy,
            visible=part.visible,
            counted=counted,
            after=after,
            image_size=self.image_size,
        )
        with torch.no_grad():
            placed = part.visible & after
            off_px = (out.points_xy - part.tracks_xy).norm(dim=-1)
            within = torch.stack([((off_px < threshold) & placed).sum() for threshold in THRESHOLDS_PX])
            correct = (out.visible == part.visible) & after
            rows = [torch.stack([within.double().mean(), placed.sum()]), torch.stack([correct.sum(), after.sum()])]
        return PartLoss(loss.total * len(part), torch.stack([row.double() for row in rows]).cpu())

    def test(self, model: Path, processes: Processes) -> dict[str, float | int]:
        """AJ, delta-average and OA in the first process; empty in the others."""
        if not processes.first:
            return {}
        means = self._scores(model, processes).means()
        names = ("average_jaccard", "average_pts_within_thresh", "occlusion_accuracy")
        return {name: means[name] for name in names}

    def evaluate(self, model: Path, folder: Path, processes: Processes) -> None:
        """Write all metrics of the same test, with a row per video."""
        if not self.streams.validation_scenes or not processes.first:
            return
        scores = self._scores(model, processes)
        protocol = tapvid_protocol(
            self._validation(), tracker=str(model), query_mode="first", image_size=(_RASTER_PX, _RASTER_PX)
        )
        write_tapvid_result(folder, scores, protocol, [])

    def _scores(self, model: Path, processes: Processes) -> TapvidScores:
        tracker = load_as(PointTracker, model, device=processes.device)
        scores, _ = evaluate_tapvid(
            tracker, self._validation(), image_size=(_RASTER_PX, _RASTER_PX), device=processes.device
        )
        return scores

    def _validation(self) -> TrackedVideos:
        """Whole frames: of twice the scenes' side, so that things move as far in pixels."""
        whole = replace(self.streams.scenes, image_size=(_RASTER_PX, _RASTER_PX))
        scenes = LongScenes(whole, seed=self.streams.validation_seed, pictures=photographs("held_out"))
        return TrackedVideos(
            f"long scenes, seed {self.streams.validation_seed}",
            [
                (f"long scene {index}", partial(scenes.video, index, _VALIDATION_FRAMES))
                for index in range(self.streams.validation_scenes)
            ],
        )


def _merged(begun: LocalState, carried: LocalState, is_new: Tensor) -> LocalState:
    """The carried states, but for new streams the begun ones."""
    count = len(is_new)
    rows = torch.where(is_new, 0, count) + torch.arange(count, device=is_new.device)
    return LocalState.cat([begun, carried]).select(rows)
