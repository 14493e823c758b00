"""Evaluation of masked autoencoders: metrics and pictures of restored patches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from trecvit.config import Preprocessing
from trecvit.draws import Stream, torch_seed
from trecvit.errors import DataError
from trecvit.files import writing
from trecvit.model.mae import Autoencoder, targets, tube_masks
from trecvit.video.draw import draw_grid, fit_for_display
from trecvit.video.encode import VideoWriter
from trecvit.video.frames import Image

ROWS = ("input", "visible", "restored")
PICTURE, FILM = "restored.png", "restored.mp4"
_MAX_COLUMNS = 8  # frames of a clip in the picture
_CELL_PX = 128
_ROUNDS = 3  # repetitions of the short clips in the film
_UNTIMED_FPS = 8.0  # frame rate of the film if the model has none
_GREY = 0.5  # colour of hidden patches, for pixels in [0,1]

Clip = UInt8[Tensor, "t 3 h w"]


@torch.inference_mode()
def evaluate_mae(autoencoder: Autoencoder, clips: Sequence[Clip], *, seed: int) -> dict[str, float | int]:
    """Measure how well hidden patches are restored.

    Args:
        autoencoder: With its `mask_ratio`.
        clips: Of one size and length.
        seed: Seed of the masks, which depend on it and on a clip's index.

    Returns:
        `explained`: share of the targets' variation that is explained, 1 - (sum of squared errors) / (sum of squared
        targets), over all clips; 0 for the constant prediction 0, which is a flat patch of the true mean if targets are
        normalised, else a mid-grey one.
        `psnr_db`: PSNR of the hidden patches' pixels, mean over clips; with normalised targets each patch has its true
        mean and contrast. `flat_psnr_db`: the same for flat patches of the true mean, a baseline without a model if
        targets are normalised, and beyond any model if not. `clips`: their number.

    Raises:
        DataError: when there are no clips.
    """
    if not clips:
        raise DataError("expected at least one clip to restore, got none")
    wrong, whole, psnr_db, flat_psnr_db = 0.0, 0.0, 0.0, 0.0
    for index, clip in enumerate(clips):
        video = clip[None].to(autoencoder.device)
        normalised, hidden = autoencoder(video, _visible(autoencoder, clip, seed, index))
        true = targets(video, hidden, autoencoder.config)
        guess = normalised.float()
        wrong += float((guess - true.normalised).square().sum())
        whole += float(true.normalised.square().sum())
        pixels = true.normalised * true.deviation + true.mean
        psnr_db += _psnr_db((guess * true.deviation + true.mean).clamp(0.0, 1.0), pixels)
        flat_psnr_db += _psnr_db(_flat(pixels), pixels)
    count = len(clips)
    return {
        "explained": 1.0 - wrong / max(whole, 1e-9),
        "psnr_db": psnr_db / count,
        "flat_psnr_db": flat_psnr_db / count,
        "clips": count,
    }


@torch.inference_mode()
def draw_restored(autoencoder: Autoencoder, clips: Sequence[Clip], folder: Path, *, seed: int) -> None:
    """Write `restored.png`, frames of the clips over time, and `restored.mp4`, the same clips side by side.

    Each clip is shown as input, as its visible patches on grey, and restored: visible patches copied, hidden ones
    predicted; normalised predictions get their true mean and contrast.

    Args:
        autoencoder: The model.
        clips: Of one size and length, at least a frame.
        folder: Created if missing.
        seed: As for `evaluate_mae`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = [_rows(autoencoder, clip, _visible(autoencoder, clip, seed, index)) for index, clip in enumerate(clips)]
    num_frames = len(clips[0])
    columns = np.unique(np.linspace(0, num_frames - 1, min(num_frames, _MAX_COLUMNS)).round().astype(int))
    grid = [[row[frame] for frame in columns] for rows in shown for row in rows]
    picture = draw_grid(grid, [f"frame {frame}" for frame in columns], row_titles=ROWS * len(shown))
    with writing(folder / PICTURE):
        PIL.Image.fromarray(picture).save(folder / PICTURE)
    with VideoWriter(folder / FILM, _film_fps(autoencoder.preprocessing)) as film:
        for _ in range(_ROUNDS):
            for frame in range(num_frames):
                film.write(draw_grid([[row[frame] for row in rows] for rows in shown], ROWS))


def _film_fps(preprocessing: Preprocessing) -> float:
    return preprocessing.frame_rate_fps or _UNTIMED_FPS


def _visible(autoencoder: Autoencoder, clip: Tensor, seed: int, index: int) -> Int64[Tensor, "1 k"]:
    config = autoencoder.config
    num_patches = (clip.shape[2] // config.blocks.patch_size) * (clip.shape[3] // config.blocks.patch_size)
    generator = torch.Generator().manual_seed(torch_seed(seed, Stream.TEST_MASK, index))
    return tube_masks(1, num_patches, config.mask_ratio, generator).to(autoencoder.device)


def _rows(autoencoder: Autoencoder, clip: Tensor, visible: Tensor) -> list[list[Image]]:
    """Return the frames of a clip as input, with hidden patches grey, and restored."""
    video = clip[None].to(autoencoder.device)
    hidden = autoencoder(video, visible).hidden
    grey = torch.full_like(targets(video, hidden, autoencoder.config).mean, _GREY)
    videos = (video.float() / 255.0, autoencoder.with_patches(video, hidden, grey), autoencoder.restore(video, visible))
    return [list(_images(video[0])) for video in videos]


def _images(frames: Tensor) -> Iterator[Image]:
    pixels = (frames * 255.0).round().byte().movedim(1, -1).cpu().numpy()
    for frame in pixels:
        yield fit_for_display(frame, _CELL_PX)


def _flat(patches: Tensor) -> Tensor:
    """Replace each patch by its mean colour."""
    colours = patches.unflatten(-1, (3, -1))
    flat: Tensor = colours.mean(dim=-1, keepdim=True).expand_as(colours).flatten(-2)
    return flat


def _psnr_db(guess: Tensor, true: Tensor) -> float:
    """Compute the PSNR of pixels in [0,1]."""
    return float(-10.0 * (guess - true).square().mean().clamp(min=1e-10).log10())
