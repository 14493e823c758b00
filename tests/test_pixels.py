"""Accepted floating-point pixels: all results of a resize, none on another scale."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from models import random_video, tiny_model, tiny_readout_tracker, tiny_tracker

from paper.memoriser import Memoriser, MemoriserConfig, past_frame
from trecvit.config import ModelConfig
from trecvit.errors import InputError
from trecvit.model.mae import AutoencoderConfig, MaskedAutoencoder, decoder_config, targets, tube_masks
from trecvit.model.pixels import check_pixels, unit_pixels

SIZES = [(16, 24), (32, 32), (64, 64), (97, 150)]
BLOCKS = ModelConfig(width=16, depth=1, num_heads=2, mlp_width=24, patch_size=8, image_size=(16, 24), num_classes=0)


def pictures():
    """Float32 [H,W] in [0,1]: noise in black and white, what overshoots most, and a white caption on noise."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:48, :64]
    yield (random.random((61, 47)) < 0.5).astype(np.float32)
    for side in (1, 2, 3):
        yield ((rows // side + columns // side) % 2).astype(np.float32)
    caption = random.random((72, 128), np.float32)
    caption[30:40, 30:90] = 1.0
    yield caption


def by_pillow(name):
    filter_ = PIL.Image.Resampling[name]
    return lambda picture, size: np.asarray(PIL.Image.fromarray(picture).resize(size[::-1], filter_))


def by_torch(mode, antialias, dtype=torch.float32):
    def resize(picture, size):
        tensor = torch.from_numpy(picture)[None, None].to(dtype)
        return F.interpolate(tensor, size=size, mode=mode, antialias=antialias)[0, 0]

    return resize


def by_opencv(name):
    cv2 = pytest.importorskip("cv2")
    return lambda picture, size: cv2.resize(picture, size[::-1], interpolation=getattr(cv2, name))


@pytest.mark.parametrize(
    ("library", "arguments"),
    [
        *((by_pillow, (name,)) for name in ("BOX", "BILINEAR", "HAMMING", "BICUBIC", "LANCZOS")),
        *((by_torch, (mode, antialias)) for mode in ("bilinear", "bicubic") for antialias in (False, True)),
        *((by_torch, ("bicubic", False, dtype)) for dtype in (torch.float64, torch.float16, torch.bfloat16)),
        (by_torch, ("bilinear", True, torch.float64)),
        *((by_opencv, (name,)) for name in ("INTER_AREA", "INTER_CUBIC", "INTER_LANCZOS4")),
    ],
)
def test_any_resize_of_valid_pixels_is_valid(library, arguments):
    resize = library(*arguments)
    for picture in pictures():
        for size in SIZES:
            got = torch.as_tensor(np.array(resize(picture, size))) if library is not by_torch else resize(picture, size)
            check_pixels(got)
            unit = unit_pixels(got, got.dtype)
            assert unit.min() >= 0.0
            assert unit.max() <= 1.0
            inside = (got >= 0.0) & (got <= 1.0)
            assert torch.equal(unit[inside], got[inside])


def test_an_antialiased_resize_of_a_white_caption_is_accepted():
    video = random_video(1, 4, 72, 128).float() / 255
    video[..., 30:40, 30:90] = 1.0
    video = torch.stack([F.interpolate(frame, size=(16, 24), mode="bilinear", antialias=True) for frame in video])
    video[0, 0, 0, 0, 0] = 1.0000002  # what rounding makes of some pictures
    model = tiny_model()
    assert torch.equal(model(video).logits, model(video.clamp(0, 1)).logits)


def cases():
    """A function of frames for each kind of model, in clip and stream."""
    video, tracker, readout = tiny_model(), tiny_tracker(), tiny_readout_tracker()
    pairs = tiny_model(temporal_patch_size=2)
    queries = torch.tensor([[[0, 3.0, 4.0]]])
    autoencoder = MaskedAutoencoder(AutoencoderConfig(blocks=BLOCKS, decoder=decoder_config(BLOCKS)))
    memoriser = Memoriser(MemoriserConfig(blocks=BLOCKS, offset=1))
    visible = tube_masks(1, 6, 0.5, torch.Generator().manual_seed(0))
    size = (16, 24)
    hidden = torch.tensor([[0, 3]])
    return {
        "clip": lambda x: video(x).logits,
        "clips": lambda x: video(x, frames_per_clip=2).logits,
        "stream": lambda x: video.step(x, video.init_state(1))[0].logits,
        "pairs": lambda x: pairs.step(x, pairs.init_state(1))[0].logits,
        "tracker": lambda x: tracker(x, queries).points_xy,
        "live tracker": lambda x: tracker.step(x, tracker.init_state(queries, image_size=size))[0].points_xy,
        "readout": lambda x: readout(x, queries).points_xy,
        "autoencoder": lambda x: autoencoder(x, visible).normalised,
        "memoriser": memoriser,
        "targets": lambda x: targets(x, hidden, autoencoder.config).normalised,
        "past frame": lambda x: past_frame(x, 1),
    }


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.slow
@pytest.mark.parametrize("case", cases())
@torch.no_grad()
def test_overshoot_is_clamped_in_every_model(case):
    run = cases()[case]
    video = random_video(1, 4).float() / 255
    video[:, :, :, 3] *= 1.5
    video[:, :, :, 5] -= 0.4
    assert torch.equal(run(video), run(video.clamp(0.0, 1.0)))


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["0..255", "-1..1", "-0.5..0.5", "ImageNet"])
@pytest.mark.parametrize("case", [name for name in cases() if name not in ("targets", "past frame")])
@torch.no_grad()
def test_pixels_on_another_scale_are_refused_in_every_model(case, scale):
    video = random_video(1, 4).float()
    if scale == "-1..1":
        video = video / 127.5 - 1
    elif scale == "-0.5..0.5":
        video = video / 255 - 0.5
    elif scale == "ImageNet":
        mean, deviation = (torch.tensor(of).view(3, 1, 1) for of in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        video = (video / 255 - mean) / deviation
    with pytest.raises(InputError, match=r"floating-point pixels in \[0,1\], got values from .*give uint8"):
        cases()[case](video)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("value", "other"), [(1.85, -0.2), (-0.85, 1.2), (1.44, 0.5), (-0.44, 0.5)])
def test_the_message_gives_the_limits_exactly(device, value, other):
    for dtype in (torch.float32, torch.float64):
        at_limit = torch.tensor(value, dtype=dtype)
        at_limit = torch.nextafter(at_limit, torch.tensor(0.5, dtype=dtype))  # 1.85 - 1 is not 0.85
        beyond = torch.tensor(value + 0.001 * (1 if value > 0 else -1), dtype=dtype)
        frames = torch.full((1, 1, 3, 8, 8), 0.5, device=device, dtype=dtype)
        frames[0, 0, 0, 0, 0], frames[0, 0, 1, 2, 3] = other, at_limit
        check_pixels(frames)
        frames[0, 0, 1, 2, 3] = beyond
        with pytest.raises(InputError, match=f"{float(beyond):.9g}"):
            check_pixels(frames)


def test_a_frame_is_refused_alone_as_in_a_clip():
    frames = torch.full((1, 2, 3, 8, 8), 0.5)
    frames[0, 0, 0, 0, 0], frames[0, 1, 0, 0, 0] = 1.2, -0.5
    check_pixels(frames[:, :1])
    for refused in (frames, frames[:, 1:]):
        with pytest.raises(InputError):
            check_pixels(refused)


def test_gradients_reach_the_pixels_that_are_inside():
    model = tiny_model()
    video = random_video(1, 2).float() / 255
    video[0, 0, 0, 0, :2] = torch.tensor([1.2, -0.2])
    video.requires_grad_()
    model(video).logits.square().sum().backward()
    assert video.grad[0, 0, 0, 0, :2].abs().max() == 0.0
    assert (video.grad[0, 0, 0, 0, 2:] != 0.0).all()


IN_GRAPHS = """
import torch
from models import random_video, tiny_model
from trecvit.errors import InputError

def refuses(run, video, kind):
    try:
        run(video)
    except kind as error:
        assert "floating-point pixels in [0,1]" in str(error)
    else:
        raise AssertionError("took them")

model = tiny_model(depth=1)
video = random_video(1, 2).float() / 255
over = video.clone()
over[0, 0, 0, 0, :2] = torch.tensor([1.2, -0.2])
compiled = torch.compile(model, fullgraph=True, backend="eager")
gradients = []
for run in (model, compiled):
    leaf = over.clone().requires_grad_()
    run(leaf).logits.square().sum().backward()
    gradients.append(leaf.grad)
torch.testing.assert_close(*gradients)
program = torch.export.export(model, (video,)).module()
for run in (compiled, program):
    torch.testing.assert_close(run(over).logits, model(over).logits)
    for bad in (video * 255, video * 2 - 1, torch.full_like(video, torch.nan)):
        refuses(run, bad, InputError if run is compiled else RuntimeError)
"""


@pytest.mark.slow
def test_compiled_models_and_exported_programs_refuse_and_clamp_as_the_model_does(forks):
    done = forks.run(IN_GRAPHS)
    assert done.returncode == 0, done.stderr
