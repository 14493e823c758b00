"""Input pixels of all models: uint8, or floating point in [0,1] with the overshoot of a resize."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from trecvit.errors import InputError

# How far valid pixels may be outside [0,1]. Resampling kernels with negative lobes overshoot at edges: on pictures by
# 0.1 to 0.2; on black and white noise, the worst case, by up to 0.438 at one end alone, and at both ends by 0.45
# (bicubic) or 0.8 (Lanczos; 4,000 random pictures and sizes, with torch, Pillow and OpenCV). Antialiased bilinear
# kernels overshoot by rounding only. Subtracting a mean exceeds these limits at the dark end alone, and dividing by a
# standard deviation exceeds them further.
MAX_OVERSHOOT = 0.85
_MAX_AT_ONE_END, _AT_THE_OTHER = 0.44, 0.1


def check_pixels(frames: Shaped[Tensor, "*any"]) -> None:
    """Raise InputError for floating-point pixels that are not in [0,1] nor the overshoot of a resize, and for NaN.

    Frames are checked one by one, so that a clip is refused if and only if one of its frames is, on every device. On a
    GPU this waits for the frames; uint8 frames need no check.

    Args:
        frames: The last three axes are those of a frame.
    """
    if not frames.is_floating_point() or not frames.numel() or frames.device.type == "meta":
        return
    if torch.compiler.is_compiling():  # no graph can branch on values: there `unit_pixels` checks
        return
    low, high = (value.item() for value in frames.detach().aminmax())
    if low >= 0.0 and high <= 1.0:
        return
    if not _is_resized(frames.detach()):
        raise InputError(
            f"expected floating-point pixels in [0,1], got values from {low:.9g} to {high:.9g} (more than "
            f"the overshoot of a resize, which is clamped: at most {_MAX_AT_ONE_END:g} at one end or "
            f"{MAX_OVERSHOOT:g} at both); give uint8, divide by 255, or leave out the normalisation with mean and "
            "standard deviation"
        )


def _is_resized(frames: Tensor) -> Tensor:
    """Return whether all frames can result from a resize of pixels in [0,1]; false for NaN."""
    low, high = frames.flatten(-min(3, frames.dim())).aminmax(dim=-1)
    least, most = torch.minimum(-low, high - 1.0), torch.maximum(-low, high - 1.0)
    return ((most <= MAX_OVERSHOOT) & ((most <= _MAX_AT_ONE_END) | (least >= _AT_THE_OTHER))).all()


def unit_pixels(frames: Shaped[Tensor, "*any"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "*any"]:
    """Convert uint8 or floating-point pixels to [0,1]; the overshoot of a resize is clamped.

    In a compiled graph, where `check_pixels` cannot raise, this raises in its place; a `torch.export` program has an
    assertion instead.

    Args:
        frames: Pixels that have passed `check_pixels`.
        dtype: Dtype of the result.
    """
    if frames.dtype == torch.uint8:
        return frames.to(dtype) / 255.0
    if torch.compiler.is_exporting():
        torch._assert_async(
            _is_resized(frames), "expected floating-point pixels in [0,1]; give uint8, or divide by 255"
        )
    elif torch.compiler.is_compiling():
        checked: Tensor = _checked(frames)
        return checked.to(dtype)
    return frames.to(dtype).clamp(0.0, 1.0)


# It reads a value back, which a CUDA graph cannot record: hence the tag, which excludes it from such graphs.
@torch.library.custom_op("trecvit::checked_pixels", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _checked(frames: Tensor) -> Tensor:
    """Check and clamp as one operation that a compiler neither traces nor removes."""
    check_pixels(frames)
    return frames.clamp(0.0, 1.0)


@_checked.register_fake
def _(frames: Tensor) -> Tensor:
    return torch.empty_like(frames)


def _keep_frames(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _clamp_gradient(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> Tensor:
    (frames,) = ctx.saved_tensors  # type: ignore[attr-defined]
    return torch.where((frames >= 0.0) & (frames <= 1.0), gradient, 0.0)


_checked.register_autograd(_clamp_gradient, setup_context=_keep_frames)
