"""How well frames of the past are returned: PSNR beside answers that need no memory, pictures, and endless streams."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from trecvit.errors import DataError
from trecvit.evaluate.forgetting import Forgetting, begun_anew, forgotten, state_rms
from trecvit.files import writing
from trecvit.model.memorise import Memoriser, past_frame
from trecvit.model.state import State
from trecvit.video.draw import draw_grid, fit_for_display
from trecvit.video.frames import Image

PICTURE = "returned.png"
_CELL_PX = 128
_GREY = 0.5

Answer = Callable[[Tensor], Tensor]  # uint8 [B,T,3,H,W] -> [B,3,H,W]
Clip = UInt8[Tensor, "t 3 h w"]


def psnr_db(answer: Float[Tensor, "b 3 h w"], true: Float[Tensor, "b 3 h w"]) -> Float[Tensor, " b"]:
    """-10 log10 of the mean squared error of each picture, pixels in [0,1]; answers are cut off there."""
    return -10.0 * (answer.float().clamp(0.0, 1.0) - true).square().mean(dim=(1, 2, 3)).clamp(min=1e-10).log10()


@torch.inference_mode()
def evaluate_memory(answer: Answer, clips: Sequence[Clip], offset: int) -> dict[str, float | int]:
    """How well frame T-k of clips of T frames is returned.

    Args:
        answer: A model, given one clip after another; its pictures may come from any device.
        clips: Of one size and length, on the CPU.
        offset: k.

    Returns:
        `psnr_db`: the mean over clips. `constant_psnr_db`: that of the mean of all clips' true frames, the best answer
        for somebody who has not looked; `last_psnr_db`: that of the last frame, for somebody who remembers nothing.
        `explained`: 1 - (sum of squared errors) / (sum of squared distances from mid-grey). `clips`: how many.

    Raises:
        DataError: when there are no clips.
    """
    if not clips:
        raise DataError("expected at least one clip to remember, got none")
    true = torch.cat([past_frame(clip[None], offset) for clip in clips])
    last = torch.cat([past_frame(clip[None], 0) for clip in clips])
    given = torch.cat([answer(clip[None]).float().cpu() for clip in clips])
    wrong = (given.clamp(0.0, 1.0) - true).square().sum()
    return {
        "psnr_db": float(psnr_db(given, true).mean()),
        "constant_psnr_db": float(psnr_db(true.mean(dim=0, keepdim=True).expand_as(true), true).mean()),
        "last_psnr_db": float(psnr_db(last, true).mean()),
        "explained": 1.0 - float(wrong / (true - _GREY).square().sum().clamp(min=1e-9)),
        "clips": len(clips),
    }


@torch.inference_mode()
def draw_memory(answers: Mapping[str, Answer], clips: Sequence[Clip], offset: int, path: Path) -> None:
    """Writes a picture with a row for each clip: its last frame, the one to be returned, and what was returned.

    Args:
        answers: Models by the titles of their columns.
        clips: Some, of one size and length.
        offset: k.
        path: The PNG file; its folder is made if need be.
    """
    rows = []
    for clip in clips:
        shown = [past_frame(clip[None], 0), past_frame(clip[None], offset)]
        shown += [answer(clip[None]) for answer in answers.values()]
        rows.append([_image(frame[0]) for frame in shown])
    path.parent.mkdir(parents=True, exist_ok=True)
    num_frames = len(clips[0])
    titles = [f"input, frame {num_frames}", f"target, frame {num_frames - offset}", *answers]
    with writing(path):
        PIL.Image.fromarray(draw_grid(rows, titles)).save(path)


def _image(frame: Float[Tensor, "3 h w"]) -> Image:
    pixels = (frame.float().clamp(0.0, 1.0) * 255.0).round().byte().movedim(0, -1).cpu().numpy()
    return fit_for_display(pixels, _CELL_PX)


# ---- streams that go on past the length of the training clips --------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Recalled:
    """What a stream is worth at one moment, the mean over all streams.

    Attributes:
        forgetting: `Forgetting.name`.
        streams: How many there are.
        frames: How many of each have been seen.
        psnr_db: Of the answer, against the frame k frames before the last.
        first_psnr_db: Of the same answer, against frame T-k from the beginning, which the model was trained to return.
        constant_psnr_db: Of the mean of all streams' frames k frames before the last, against these.
        last_psnr_db: Of the last frame, against the frame k frames before it.
        state_rms: Root of the mean square of the recurrences' states over blocks, patches and channels.
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
    """Goes frame by frame through streams, at constant memory, and tests the answers at some moments.

    Args:
        model: Its configuration says k.
        streams: The frames of B streams, and which are the first after a cut. It may end before the last moment.
        forgettings: What is tried, all on the same frames.
        moments: After how many frames answers are tested, rising, each more than k.
        num_frames: T of the training clips.
        report: Called with the number of frames seen.
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
        rows = frames.repeat(count, 1, 1, 1)[:, None].to(model.device)  # all streams, for one after the other way
        state = model.init_state(len(rows), image_size=(frames.shape[2], frames.shape[3])) if state is None else state
        state = begun_anew(state, forgettings, cuts)
        with torch.inference_mode():
            answers, state = model.step(rows, state)
        report(seen)
        if seen == left[0]:
            true, last = (past_frame(some[None].movedim(0, 1), 0) for some in (recent[0], recent[-1]))
            assert first is not None, "moments are after the frame to be returned"
            for place, how in enumerate(forgettings):
                given = answers[place * len(frames) : (place + 1) * len(frames)].cpu()
                yield Recalled(
                    forgetting=how.name,
                    streams=len(frames),
                    frames=seen,
                    psnr_db=float(psnr_db(given, true).mean()),
                    first_psnr_db=float(psnr_db(given, first).mean()),
                    constant_psnr_db=float(psnr_db(true.mean(dim=0, keepdim=True).expand_as(true), true).mean()),
                    last_psnr_db=float(psnr_db(last, true).mean()),
                    state_rms=state_rms(state, slice(place * len(frames), (place + 1) * len(frames))),
                )
            left.pop(0)
            if not left:
                return
        state = forgotten(state, forgettings, clip_ends=seen % num_frames == 0)
