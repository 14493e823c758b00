"""Evaluation of memorisation: PSNR beside predictions without memory, pictures, and endless streams."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from paper.forgetting import Forgetting, forgotten, reset_at_cuts, state_rms
from paper.memoriser import Memoriser, past_frame
from trecvit.errors import DataError
from trecvit.files import writing
from trecvit.model.state import State
from trecvit.video.draw import draw_grid, fit_for_display
from trecvit.video.frames import Image

PICTURE = "returned.png"
_CELL_PX = 128
_GREY = 0.5

Predict = Callable[[Tensor], Tensor]  # uint8 [B,T,3,H,W] -> [B,3,H,W]
Clip = UInt8[Tensor, "t 3 h w"]


def psnr_db(predicted: Float[Tensor, "b 3 h w"], true: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """PSNR of each picture, pixels in [0,1]; predictions are clamped."""
    return -10.0 * (predicted.float().clamp(0.0, 1.0) - true).square().mean(dim=(1, 2, 3)).clamp(min=1e-10).log10()


@torch.inference_mode()
def evaluate_memory(predict: Predict, clips: Sequence[Clip], offset: int) -> dict[str, float | int]:
    """Measure the reconstruction of frame T-k in clips of T frames.

    Args:
        predict: A model; its outputs may be on any device.
        clips: Of one size and length, on the CPU.
        offset: k.

    Returns:
        `psnr_db`: mean over clips. `constant_psnr_db`: of the mean of all clips' true frames, the best prediction
        without input. `last_psnr_db`: of the last frame, a prediction without memory. `explained`: 1 - (sum of squared
        errors) / (sum of squared distances from mid-grey). `clips`: their number.

    Raises:
        DataError: when there are no clips.
    """
    if not clips:
        raise DataError("expected one clip or more, got none")
    true = torch.cat([past_frame(clip[None], offset) for clip in clips])
    last = torch.cat([past_frame(clip[None], 0) for clip in clips])
    predicted = torch.cat([predict(clip[None]).float().cpu() for clip in clips])
    error = (predicted.clamp(0.0, 1.0) - true).square().sum()
    return {
        "psnr_db": float(psnr_db(predicted, true).mean()),
        "constant_psnr_db": float(psnr_db(true.mean(dim=0, keepdim=True).expand_as(true), true).mean()),
        "last_psnr_db": float(psnr_db(last, true).mean()),
        "explained": 1.0 - float(error / (true - _GREY).square().sum().clamp(min=1e-9)),
        "clips": len(clips),
    }


@torch.inference_mode()
def draw_memory(models: Mapping[str, Predict], clips: Sequence[Clip], offset: int, path: Path) -> None:
    """Draw a row for each clip: its last frame, frame T-k, and the models' reconstructions.

    Args:
        models: Models by the titles of their columns.
        clips: Clips of one size and length.
        offset: k.
        path: The PNG file to write; its folder is created.
    """
    rows = []
    for clip in clips:
        shown = [past_frame(clip[None], 0), past_frame(clip[None], offset)]
        shown += [predict(clip[None]) for predict in models.values()]
        rows.append([_image(frame[0]) for frame in shown])
    path.parent.mkdir(parents=True, exist_ok=True)
    num_frames = len(clips[0])
    titles = [f"input, frame {num_frames}", f"target, frame {num_frames - offset}", *models]
    with writing(path):
        PIL.Image.fromarray(draw_grid(rows, titles)).save(path)


def _image(frame: Float[Tensor, "3 h w"]) -> Image:
    pixels = (frame.float().clamp(0.0, 1.0) * 255.0).round().byte().movedim(0, -1).cpu().numpy()
    return fit_for_display(pixels, _CELL_PX)


# ---- streams longer than the training clips ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Recalled:
    """Reconstruction after some frames, mean over the streams.

    Attributes:
        forgetting: `Forgetting.name`.
        streams: Number of streams.
        frames: Frames so far.
        psnr_db: Of the prediction, against the frame k before the last.
        first_psnr_db: Of the prediction, against frame T-k of the stream, the training target.
        constant_psnr_db: Of the mean of all streams' frames k before the last, against these.
        last_psnr_db: Of the last frame, against the frame k before it.
        state_rms: Root mean square of the recurrences' states over blocks, patches and channels.
    """

    forgetting: str
    streams: int
    frames: int
    psnr_db: float
    first_psnr_db: float
    constant_psnr_db: float
    last_psnr_db: float
    state_rms: float


def recall_in_streams(
    model: Memoriser,
    streams: Iterable[tuple[UInt8[Tensor, "b 3 h w"], Bool[Tensor, " b"]]],
    forgettings: Sequence[Forgetting],
    moments: Sequence[int],
    *,
    num_frames: int,
    report: Callable[[int], None] = lambda _: None,
) -> Iterator[Recalled]:
    """Run streams frame by frame, in constant memory, and test the predictions after some frames.

    Args:
        model: Its configuration has k.
        streams: The frames of B streams, and which are the first after a cut; they may end early.
        forgettings: Rules to compare, on the same frames.
        moments: Numbers of frames after which predictions are tested, rising, each more than k.
        num_frames: T of the training clips.
        report: Called with the number of frames so far.
    """
    offset, count = model.config.offset, len(forgettings)
    recent: deque[Tensor] = deque(maxlen=offset + 1)
    first: Tensor | None = None
    state: State | None = None
    left = list(moments)
    for seen, (frames, cuts) in enumerate(streams, start=1):
        recent.append(frames)
        if seen == num_frames - offset:
            first = past_frame(frames[None].movedim(0, 1), 0)
        rows = frames.repeat(count, 1, 1, 1)[:, None].to(model.device)  # all streams, once for each rule
        state = model.init_state(len(rows), image_size=(frames.shape[2], frames.shape[3])) if state is None else state
        state = reset_at_cuts(state, forgettings, cuts)
        with torch.inference_mode():
            predicted, state = model.step(rows, state)
        report(seen)
        if seen == left[0]:
            true, last = (past_frame(some[None].movedim(0, 1), 0) for some in (recent[0], recent[-1]))
            assert first is not None, "moments are after frame T-k"
            for index, how in enumerate(forgettings):
                own = slice(index * len(frames), (index + 1) * len(frames))
                given = predicted[own].cpu()
                yield Recalled(
                    forgetting=how.name,
                    streams=len(frames),
                    frames=seen,
                    psnr_db=float(psnr_db(given, true).mean()),
                    first_psnr_db=float(psnr_db(given, first).mean()),
                    constant_psnr_db=float(psnr_db(true.mean(dim=0, keepdim=True).expand_as(true), true).mean()),
                    last_psnr_db=float(psnr_db(last, true).mean()),
                    state_rms=state_rms(state, own),
                )
            left.pop(0)
            if not left:
                return
        state = forgotten(state, forgettings, clip_ends=seen % num_frames == 0)
