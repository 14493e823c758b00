from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trecvit.errors import InputError
from trecvit.video.transforms import centre_crop, crop, to_clip, to_whole_clip

sides = st.integers(1, 70)


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("image_size", [(17, 23), (40, 30), (111, 64)])
def test_resizing_is_antialiased_bilinear(image_size: tuple[int, int]) -> None:
    frames = noise(2, 48, 64, 3).numpy()
    height, width = image_size
    for picture, resized in zip(frames, to_whole_clip(frames, image_size), strict=True):
        expected = PIL.Image.fromarray(picture).resize((width, height), PIL.Image.Resampling.BILINEAR)
        difference = np.abs(np.asarray(expected).astype(int) - resized.permute(1, 2, 0).numpy())
        assert difference.max() <= 2


def test_crops_are_the_pixels_asked_for() -> None:
    frames = noise(2, 5, 3, 20, 30)
    assert torch.equal(crop(frames, 3, 4, 5, 6), frames[..., 3:8, 4:10])
    assert torch.equal(centre_crop(frames, 10, 11), frames[..., 5:15, 9:20])
    assert torch.equal(crop(frames, 0, 0, 20, 30), frames)


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 26, 5, 5), (16, 0, 5, 5), (0, 0, 21, 30), (0, 0, 0, 5)])
def test_crops_beyond_the_picture_are_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(InputError, match="picture of 30 x 20"):
        crop(noise(3, 20, 30), *box)


def test_centre_crops_larger_than_the_picture_are_refused() -> None:
    with pytest.raises(InputError, match="crop"):
        centre_crop(noise(3, 20, 30), 21, 30)


@settings(deadline=None, max_examples=60)
@given(sides, sides, sides, sides, st.integers(1, 3))
def test_clips_have_exactly_the_size_asked_for(
    height: int, width: int, clip_height: int, clip_width: int, num_frames: int
) -> None:
    clip = to_clip(np.full((num_frames, height, width, 3), 9, np.uint8), (clip_height, clip_width))
    assert tuple(clip.shape) == (num_frames, 3, clip_height, clip_width)
    assert clip.dtype == torch.uint8
    assert clip.is_contiguous()
    assert (clip == 9).all()


def test_clips_show_the_middle_upright_in_rgb() -> None:
    frames = np.zeros((2, 40, 80, 3), np.uint8)
    frames[:, :, :20] = frames[:, :, 60:] = 255
    frames[:, :20, 20:60] = (200, 0, 0)
    frames[:, 20:, 20:60] = (0, 0, 100)
    clip = to_clip(frames, (20, 20))
    assert clip[0, :, 2, 10].tolist() == [200, 0, 0]
    assert clip[1, :, 17, 10].tolist() == [0, 0, 100]
    assert clip[0, :, 2, 2].tolist() == [200, 0, 0]


def test_clips_of_the_right_size_are_copied_bit_for_bit() -> None:
    frames = noise(2, 16, 24, 3).numpy()
    clip = to_clip(frames, (16, 24))
    assert np.array_equal(clip.permute(0, 2, 3, 1).numpy(), frames)
    clip.zero_()
    assert frames.any()


@pytest.mark.parametrize("kind", ["readonly", "reversed"])
def test_any_memory_will_do(kind: str) -> None:
    frames = noise(3, 16, 16, 3).numpy()
    expected = frames.copy()
    if kind == "readonly":
        frames.flags.writeable = False
    else:
        frames, expected = frames[::-1, :, ::-1], expected[::-1, :, ::-1]
    assert np.array_equal(to_clip(frames, (16, 16)).permute(0, 2, 3, 1).numpy(), expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda: to_clip(np.zeros((2, 8, 8, 3), np.float32), (4, 4)),
        lambda: to_clip(np.zeros((2, 3, 8, 8), np.uint8), (4, 4)),
        lambda: to_clip(np.zeros((0, 8, 8, 3), np.uint8), (4, 4)),
        lambda: to_clip(np.zeros((2, 8, 8, 3), np.uint8), (4, 0)),
    ],
)
def test_impossible_requests_are_refused(call: object) -> None:
    with pytest.raises(InputError):
        call()
