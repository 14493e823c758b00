from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trecvit.errors import InputError
from trecvit.video.sampling import centre_clip, clip_indices, evaluation_clips, spatial_crops

video_lengths = st.integers(1, 5000)
clip_lengths = st.integers(1, 128)
strides = st.integers(1, 16)


def assert_is_clip(indices: np.ndarray, num_video_frames: int, num_frames: int) -> None:
    assert indices.dtype == np.int64
    assert indices.shape == (num_frames,)
    assert indices.min() >= 0
    assert indices.max() < num_video_frames
    assert (np.diff(indices) >= 0).all()


@given(video_lengths, clip_lengths, strides, st.data())
def test_clips_step_by_the_stride_and_wait_at_the_last_frame(
    num_video_frames: int, num_frames: int, stride: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, num_video_frames - 1))
    indices = clip_indices(num_video_frames, num_frames, stride, start)
    assert_is_clip(indices, num_video_frames, num_frames)
    assert list(indices) == [min(start + stride * step, num_video_frames - 1) for step in range(num_frames)]


@given(video_lengths, clip_lengths, strides)
def test_the_centre_clip_has_as_much_before_as_after(num_video_frames: int, num_frames: int, stride: int) -> None:
    indices = centre_clip(num_video_frames, num_frames, stride)
    assert_is_clip(indices, num_video_frames, num_frames)
    before, after = indices[0], num_video_frames - 1 - indices[-1]
    if (num_frames - 1) * stride < num_video_frames:
        assert after - before in (0, 1)
    else:
        assert before == 0


@given(video_lengths, clip_lengths, strides, st.integers(1, 12))
def test_evaluation_clips_cover_the_video_evenly(
    num_video_frames: int, num_frames: int, stride: int, num_clips: int
) -> None:
    clips = evaluation_clips(num_video_frames, num_frames, stride, num_clips)
    assert clips.shape == (num_clips, num_frames)
    for clip in clips:
        assert_is_clip(clip, num_video_frames, num_frames)
    gaps = np.diff(clips[:, 0])
    if num_clips == 1:
        assert np.array_equal(clips[0], centre_clip(num_video_frames, num_frames, stride))
        return
    assert gaps.max() - gaps.min() <= 1
    assert clips[0, 0] == 0
    if (num_frames - 1) * stride < num_video_frames:
        assert clips[-1, -1] == num_video_frames - 1


@given(st.integers(1, 4000), st.integers(1, 4000), st.data())
def test_crops_lie_in_the_picture_and_reach_both_ends(height_px: int, width_px: int, data: st.DataObject) -> None:
    crop_px = data.draw(st.integers(1, min(height_px, width_px)))
    (centre,) = spatial_crops(height_px, width_px, crop_px, 1)
    three = spatial_crops(height_px, width_px, crop_px, 3)
    assert len(three) == 3
    assert three[1] == centre == ((height_px - crop_px) // 2, (width_px - crop_px) // 2)
    for top, left in three:
        assert 0 <= top <= height_px - crop_px
        assert 0 <= left <= width_px - crop_px
    along = 0 if height_px > width_px else 1
    assert three[0][along] == 0
    assert three[2][along] + crop_px == max(height_px, width_px)
    assert {corner[1 - along] for corner in three} == {centre[1 - along]}


def test_by_hand() -> None:
    assert clip_indices(10, 4, 3, 2).tolist() == [2, 5, 8, 9]
    assert centre_clip(10, 4, 2).tolist() == [1, 3, 5, 7]
    assert evaluation_clips(10, 2, 1, 3).tolist() == [[0, 1], [4, 5], [8, 9]]
    assert evaluation_clips(3, 4, 2, 2).tolist() == [[0, 2, 2, 2], [0, 2, 2, 2]]
    assert spatial_crops(256, 340, 256, 3) == [(0, 0), (0, 42), (0, 84)]
    assert spatial_crops(340, 256, 224, 3) == [(0, 16), (58, 16), (116, 16)]


@pytest.mark.parametrize(
    "call",
    [
        lambda: clip_indices(0, 4),
        lambda: clip_indices(10, 0),
        lambda: clip_indices(10, 4, 0),
        lambda: clip_indices(10, 4, 1, 10),
        lambda: clip_indices(10, 4, 1, -1),
        lambda: centre_clip(0, 1),
        lambda: evaluation_clips(5, 1, 1, 0),
        lambda: spatial_crops(100, 200, 101, 1),
        lambda: spatial_crops(100, 200, 0, 1),
        lambda: spatial_crops(100, 200, 50, 2),
    ],
)
def test_impossible_requests_are_refused(call: object) -> None:
    with pytest.raises(InputError):
        call()
