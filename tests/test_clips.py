from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from trecvit.config import Preprocessing
from trecvit.data.augment import Augmentation
from trecvit.data.clips import EvaluationViews, Failure, Sample, TrainingClips, evaluation_views
from trecvit.data.layouts import read_manifest
from trecvit.errors import VideoError
from trecvit.runtime.predict import classify
from trecvit.video.decode import length_and_rate, read_frames
from trecvit.video.encode import VideoWriter
from trecvit.weights.load import load

PLAN = Preprocessing(image_size=(32, 32), num_frames=4, frame_stride=2)


def write_numbered(path: Path, frames: int, size: tuple[int, int] = (48, 64)) -> None:
    """Frame i has the shade 8 i, which identifies the frames of a clip."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, 12) as writer:
        for number in range(frames):
            writer.write(np.full((*size, 3), 8 * number, np.uint8))


def write_noise(path: Path, frames: int) -> None:
    path.parent.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with VideoWriter(path, 12) as writer:
        for _ in range(frames):
            writer.write(rng.integers(0, 256, (64, 64, 3), np.uint8))


def numbers(video: torch.Tensor) -> list[int]:
    return [round(float(frame.float().mean()) / 8) for frame in video]


@pytest.fixture
def data(tmp_path) -> Path:
    write_numbered(tmp_path / "moving left" / "long.mp4", 30)
    write_numbered(tmp_path / "moving left" / "short.mp4", 3)
    write_numbered(tmp_path / "resting" / "exact.mp4", 7)
    (tmp_path / "resting" / "broken.mp4").write_bytes(b"no video")
    return tmp_path


def test_a_clip_is_the_same_again_for_the_same_epoch_and_index(data):
    manifest = read_manifest(data)
    augmentation = Augmentation(scale=(0.9, 1.2), rand_augment_ops=1)
    clips, again = (TrainingClips(manifest, PLAN, augmentation, seed=3) for _ in range(2))
    other = TrainingClips(manifest, PLAN, augmentation, seed=4)
    starts = set()
    for epoch in range(12):
        sample = clips[epoch, 0]
        assert isinstance(sample, Sample)
        assert torch.equal(sample.pixels, again[epoch, 0].pixels)
        starts.add(sample.pixels.numpy().tobytes())
    assert len(starts) > 6
    assert any(not torch.equal(clips[epoch, 0].pixels, other[epoch, 0].pixels) for epoch in range(3))


@pytest.mark.slow
def test_training_clips_have_their_stride_and_stay_in_the_video(data):
    clips = TrainingClips(read_manifest(data), PLAN, Augmentation(), seed=0)
    begun = set()
    for epoch in range(150):
        sample = clips[epoch, 0]
        assert sample.pixels.shape == (4, 3, 32, 32)
        assert sample.pixels.dtype == torch.uint8
        shown = numbers(sample.pixels)
        assert np.diff(shown).tolist() == [2, 2, 2]
        begun.add(shown[0])
    assert begun == set(range(24))  # the last clip is frames 23, 25, 27, 29
    assert numbers(clips[0, 1].pixels) == [0, 2, 2, 2]  # drawn out by its last frame
    assert numbers(clips[0, 3].pixels) == [0, 2, 4, 6]
    assert (clips[0, 0].label, clips[0, 0].name) == (0, "moving left/long.mp4")


def test_a_video_that_cannot_be_read_is_a_failure_and_never_another_video(data):
    manifest = read_manifest(data)
    for item in (
        TrainingClips(manifest, PLAN, Augmentation(), seed=0)[0, 2],
        EvaluationViews(manifest, PLAN, num_clips=2, num_crops=1)[2],
    ):
        assert isinstance(item, Failure)
        assert item.name == "resting/broken.mp4"
        assert "expected a video that FFmpeg can read" in item.reason


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".webm", ".mkv", ".mp4"])
def test_a_file_cut_short_is_a_failure_although_its_beginning_can_be_read(tmp_path, suffix):
    path = tmp_path / "resting" / f"cut{suffix}"
    write_noise(path, 60)
    whole = path.read_bytes()
    assert length_and_rate(path)[0] == 60
    path.write_bytes(whole[: len(whole) * 6 // 10])
    if suffix != ".mp4":  # an mp4's index is at its end, and it cannot be read without it
        with pytest.raises(VideoError, match="truncated"):
            sum(1 for _ in read_frames(path))
    manifest = read_manifest(tmp_path)
    assert isinstance(TrainingClips(manifest, PLAN, Augmentation(), seed=0)[0, 0], Failure)
    assert isinstance(EvaluationViews(manifest, PLAN, num_clips=2, num_crops=1)[0], Failure)
    with pytest.raises(VideoError):
        classify(load("motions"), path)


def test_evaluation_views_are_clips_by_crops(tmp_path):
    path = tmp_path / "wide.mp4"
    with VideoWriter(path, 12) as writer:
        for number in range(13):
            frame = np.zeros((32, 96, 3), np.uint8)
            frame[:, :32, 0], frame[:, 32:64, 1], frame[:, 64:, 2] = 200, 200, 200
            frame[:, :, :] = np.where(frame > 0, frame, 4 * number)
            writer.write(frame)
    views = evaluation_views(path, PLAN, num_clips=2, num_crops=3)
    assert views.shape == (6, 4, 3, 32, 32)
    # within a clip: left, middle, right
    for clip in range(2):
        brightest = [int(view[0].float().mean(dim=(1, 2)).argmax()) for view in views[3 * clip : 3 * clip + 3]]
        assert brightest == [0, 1, 2]
    darkest = views.float().amin(dim=2).mean(dim=(2, 3))  # [views, T]: the frame's number, about four times
    assert np.abs(darkest[0].numpy() / 4 - [0, 2, 4, 6]).max() < 1
    assert np.abs(darkest[5].numpy() / 4 - [6, 8, 10, 12]).max() < 1


def test_the_frame_rate_decides_the_stride_where_the_model_has_one(tmp_path):
    write_numbered(tmp_path / "a" / "x.mp4", 31)
    plan = Preprocessing(image_size=(32, 32), num_frames=4, frame_stride=1, frame_rate_fps=4)
    sample = TrainingClips(read_manifest(tmp_path), plan, Augmentation(), seed=0)[0, 0]
    assert np.diff(numbers(sample.pixels)).tolist() == [3, 3, 3]
    assert length_and_rate(tmp_path / "a" / "x.mp4") == (31, 12.0)


def test_views_come_in_the_manifests_order(data):
    views = EvaluationViews(read_manifest(data), PLAN, num_clips=4, num_crops=3)
    assert len(views) == 4
    assert [views[number].name for number in range(4)] == [video.name for video in read_manifest(data).videos]
    assert isinstance(views[0], Sample)
    assert views[0].pixels.shape == (12, 4, 3, 32, 32)


def test_what_has_no_class_may_be_mirrored(tmp_path):
    """And a class that must not be is none any more once the classes are taken away."""
    write_noise(tmp_path / "moving left" / "noise.mp4", 10)
    manifest = read_manifest(tmp_path).unlabelled()
    clips = TrainingClips(manifest, PLAN, Augmentation(flip=True), seed=0)
    plain = TrainingClips(manifest, PLAN, Augmentation(), seed=0)
    shown = [(clips[epoch, 0], plain[epoch, 0]) for epoch in range(20)]
    assert {clip.label for clip, _ in shown} == {-1}
    # The crop is drawn before the mirror, so that both have the same.
    mirrored = sum(torch.equal(clip.pixels, other.pixels.flip(-1)) for clip, other in shown)
    assert all(
        torch.equal(clip.pixels, other.pixels) or torch.equal(clip.pixels, other.pixels.flip(-1))
        for clip, other in shown
    )
    assert 3 < mirrored < 17
