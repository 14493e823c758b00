"""How well an autoencoder restores what it did not see of clips, in figures and in pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from trecvit.config import Preprocessing
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
_ROUNDS = 3  # how often the film shows its clips, which are short
_UNTIMED_FPS = 8.0  # of the film, if the model does not say how fast its clips are
_GREY = 0.5  # what is hidden, in pixels in [0,1]

Clip = UInt8[Tensor, "t 3 h w"]


@torch.inference_mode()
def evaluate_mae(autoencoder: Autoencoder, clips: Sequence[Clip], *, seed: int) -> dict[str, float | int]:
    """How much of what is hidden is restored.

    Args:
        autoencoder: Its `mask_ratio` says how much is hidden.
        clips: Of one size and length.
        seed: Of the masks: the same for the same seed and place.

    Returns:
        `explained`: how much of the targets the guess explains, 1 - (sum of squared errors) / (sum of squared
        targets), over all clips; what is worse than 0 everywhere gets less. 0 everywhere are flat patches of the true
        mean if targets are normalised, else mid-grey ones.
        `psnr_db`: mean over clips of the PSNR of the hidden patches' pixels; with normalised targets each patch has its
        true mean and contrast. `flat_psnr_db`: that of flat patches of the true mean, which needs no model if targets
        are normalised, and which no model can know if they are not. `clips`: how many.

    Raises:
        DataError: when there are no clips.
    """
    if not clips:
        raise DataError("expected at least one clip to restore, got none")
    wrong, whole, psnr_db, flat_psnr_db = 0.0, 0.0, 0.0, 0.0
    for number, clip in enumerate(clips):
        video = clip[None].to(autoencoder.device)
        normalised, hidden = autoencoder(video, _visible(autoencoder, clip, seed, number))
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
    """Writes `restored.png`, frames of the clips over time, and `restored.mp4`, the same clips side by side.

    Of each clip there is what went in, what of it was visible (the rest grey), and what came out: the visible patches
    as they were, the others as guessed; normalised ones get their true mean and contrast.

    Args:
        autoencoder: What restores.
        clips: Some, of one size and length, of at least a frame.
        folder: Where the files go, made if need be.
        seed: As for `evaluate_mae`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = [_rows(autoencoder, clip, _visible(autoencoder, clip, seed, number)) for number, clip in enumerate(clips)]
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


def _visible(autoencoder: Autoencoder, clip: Tensor, seed: int, number: int) -> Int64[Tensor, "1 k"]:
    config = autoencoder.config
    num_patches = (clip.shape[2] // config.blocks.patch_size) * (clip.shape[3] // config.blocks.patch_size)
    draws = np.random.SeedSequence([seed, 13, number]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(draws[0]))
    return tube_masks(1, num_patches, config.mask_ratio, generator).to(autoencoder.device)


def _rows(autoencoder: Autoencoder, clip: Tensor, visible: Tensor) -> list[list[Image]]:
    """The frames of a clip as they were, as far as they were visible, and as restored."""
    video = clip[None].to(autoencoder.device)
    hidden = autoencoder(video, visible).hidden
    grey = torch.full_like(targets(video, hidden, autoencoder.config).mean, _GREY)
    videos = (video.float() / 255.0, autoencoder.with_patches(video, hidden, grey), autoencoder.restore(video, visible))
    return [list(_images(some[0])) for some in videos]


def _images(frames: Tensor) -> Iterator[Image]:
    pixels = (frames * 255.0).round().byte().movedim(1, -1).cpu().numpy()
    for frame in pixels:
        yield fit_for_display(frame, _CELL_PX)


def _flat(patches: Tensor) -> Tensor:
    """Each patch in its mean colour."""
    colours = patches.unflatten(-1, (3, -1))
    flat: Tensor = colours.mean(dim=-1, keepdim=True).expand_as(colours).flatten(-2)
    return flat


def _psnr_db(guess: Tensor, true: Tensor) -> float:
    """Of pixels in [0,1]."""
    return float(-10.0 * (guess - true).square().mean().clamp(min=1e-10).log10())
