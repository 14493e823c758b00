"""Pixels as all models take them: uint8, or floating point in [0,1] with the overshoot of a resize."""

from __future__ import annotations

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from trecvit.errors import InputError

# How far valid pixels may be outside [0,1]. Resampling kernels with negative lobes overshoot at edges: on pictures by
# 0.1 to 0.2, on black and white noise bicubic ones by up to 0.45 and Lanczos ones by up to 0.71. Antialiased bilinear
# ones do so by rounding only. Pixels normalised with a mean and a standard deviation go further wherever a frame is
# dark or bright: to -1 with 0.5 and 0.5, to -2.1 and 2.6 with ImageNet's.
MAX_OVERSHOOT = 0.75


def check_pixels(frames: Shaped[Tensor, "*any"]) -> None:
    """Raises InputError for floating-point pixels that no resize of pixels in [0,1] gives, or that are not numbers.

    Every value decides for itself, so that a clip is refused if and only if one of its frames is, and on every device
    the same. On a GPU this waits for the frames; uint8 frames need no check.
    """
    if not frames.is_floating_point() or not frames.numel() or frames.device.type == "meta":
        return
    low, high = (value.item() for value in frames.detach().aminmax())
    if not (low >= -MAX_OVERSHOOT and high <= 1.0 + MAX_OVERSHOOT):  # a pixel that is not a number fails both
        raise InputError(
            f"expected floating-point pixels in [0,1], got values from {low:.9g} to {high:.9g} (beyond the overshoot "
            f"of a resize, {MAX_OVERSHOOT:g}, which is clamped); give uint8, divide by 255, or leave out the "
            "normalisation with mean and standard deviation"
        )


def unit_pixels(frames: Shaped[Tensor, "*any"], dtype: torch.dtype = torch.float32) -> Float[Tensor, "*any"]:
    """uint8 or floating-point pixels as numbers in [0,1]; the overshoot of a resize is clamped.

    In a compiled graph, where `check_pixels` cannot raise, this raises in its place; a program of `torch.export` has an
    assertion instead.

    Args:
        frames: What `check_pixels` has seen.
        dtype: Of the result.
    """
    if frames.dtype == torch.uint8:
        return frames.to(dtype) / 255.0
    if torch.compiler.is_exporting():
        is_valid = ((frames >= -MAX_OVERSHOOT) & (frames <= 1.0 + MAX_OVERSHOOT)).all()
        torch._assert_async(is_valid, "expected floating-point pixels in [0,1]; give uint8, or divide by 255")
    elif torch.compiler.is_compiling():
        checked: Tensor = _checked(frames)
        return checked.to(dtype)
    return frames.to(dtype).clamp(0.0, 1.0)


# It reads a value back, which a CUDA graph cannot record: it is left out of such graphs.
@torch.library.custom_op("trecvit::checked_pixels", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _checked(frames: Tensor) -> Tensor:
    """`check_pixels` and the clamp as one operation, which a compiler neither looks into nor leaves out."""
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
