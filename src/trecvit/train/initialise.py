"""First weights for a small model that starts from nothing, where the paper starts from ImageNet's."""

from __future__ import annotations

import torch
from jaxtyping import UInt8
from torch import Tensor

from trecvit.model.trecvit import TRecViT

_FLOOR = 1e-3  # of a component's variance, pixels in [0,1]: what lies below is noise, and is not blown up


@torch.no_grad()
def whiten_patches(model: TRecViT, videos: UInt8[Tensor, "B T 3 H W"]) -> None:
    """Sets the patch embedding so that the tokens of these videos have uncorrelated channels of equal size.

    Neighbouring pixels are so alike that a random embedding sees little but brightness, and motion moves what is left.
    The embedding becomes the principal components of the patches, each brought to variance one, randomly turned.
    """
    embedding, width = model.tokenizer.embedding, model.config.width
    frames = videos.flatten(0, 1).float() / 255.0
    side, extent = model.config.patch_size, model.config.temporal_patch_size
    patches = frames.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    mean = patches.mean(dim=0)
    variances, directions = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    count = min(width, patches.shape[1])
    kept = directions.flip(1)[:, :count] / (variances.flip(0)[:count].clamp(min=0) + _FLOOR).sqrt()
    turned = kept @ torch.linalg.qr(torch.randn(width, count))[0].T  # [pixels, width]
    weight = turned.T.reshape(width, 3, 1, side * side).expand(-1, -1, extent, -1) / extent
    embedding.weight.copy_(weight.flatten(1))
    embedding.bias.copy_(-turned.T @ mean)


@torch.no_grad()
def scale_convolutions(model: TRecViT, factor: float) -> None:
    """Multiplies the initial weights of the temporal convolutions, which the paper begins close to zero."""
    for name, parameter in model.named_parameters():
        if name.endswith("temporal.conv.weight"):
            parameter.mul_(factor)
