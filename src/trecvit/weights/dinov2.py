"""DINOv2's image models as plain ViTs: layer scales folded in, patches resized, pixels standardised (arXiv:2304.07193).

`trecvit.weights.imagenet` reads the file; here its tensors become those of an equivalent ViT in timm's names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

# ImageNet's, for pixels in [0, 1].
MEAN = (0.485, 0.456, 0.406)
DEVIATION = (0.229, 0.224, 0.225)

_LAYER_SCALE = re.compile(r"(?:blocks\.(\d+)\.ls([12])\.gamma|encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1)")
# Parts of a block: timm's name -> transformers'.
_OF_TRANSFORMERS = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def is_dinov2(arrays: Mapping[str, Tensor]) -> bool:
    """Recognise a DINOv2 model: of the ViTs read here only these have layer scales."""
    return any(_LAYER_SCALE.search(name) for name in arrays)


def as_plain_vit(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert to the same network without layer scales, in timm's names.

    LayerScale multiplies the outputs of attention and MLP channel by channel; their last linear layers absorb it.

    Args:
        arrays: In timm's names, also with `pos_embed_patch` [1, P, D] and the sum of class token and its position,
            `cls_plus` [1, 1, D]; or in those of transformers' `Dinov2Model`. Mask and register tokens are left out.
    """
    tensors = {name.removeprefix("dinov2."): tensor for name, tensor in arrays.items()}
    if any(name.startswith("encoder.layer.") for name in tensors):
        tensors = _in_timms_names(tensors)
    if "cls_plus" in tensors and "pos_embed_patch" in tensors:
        patches = tensors.pop("pos_embed_patch")
        tensors["cls_token"] = tensors.pop("cls_plus")
        tensors["pos_embed"] = torch.cat([torch.zeros_like(patches[:, :1]), patches], dim=1)
    for name in [name for name in tensors if _LAYER_SCALE.fullmatch(name)]:
        block, which = name.split(".ls")
        last = f"{block}.{'attn.proj' if which.startswith('1') else 'mlp.fc2'}"
        scale = tensors.pop(name)
        tensors[f"{last}.weight"] = scale[:, None] * tensors[f"{last}.weight"]
        tensors[f"{last}.bias"] = scale * tensors[f"{last}.bias"]
    return {name: tensor for name, tensor in tensors.items() if name not in ("mask_token", "register_tokens")}


def _in_timms_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in tensors.items():
        parts = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", name)
        if parts is None:
            new = (
                name.replace("embeddings.patch_embeddings.projection", "patch_embed.proj")
                .replace("embeddings.position_embeddings", "pos_embed")
                .replace("embeddings.", "")
                .replace("layernorm.", "norm.")
            )
            renamed[new] = tensor
            continue
        block, rest = f"blocks.{parts[1]}.", parts[2]
        if scale := re.fullmatch(r"layer_scale([12])\.lambda1", rest):
            renamed[f"{block}ls{scale[1]}.gamma"] = tensor
            continue
        stem, _, kind = rest.rpartition(".")
        for timm, other in _OF_TRANSFORMERS.items():
            if stem == other:
                renamed[f"{block}{timm}.{kind}"] = tensor
        if stem == "attention.attention.query":
            three = [
                tensors[f"encoder.layer.{parts[1]}.attention.attention.{n}.{kind}"] for n in ("query", "key", "value")
            ]
            renamed[f"{block}attn.qkv.{kind}"] = torch.cat(three)
    return renamed


def resized_patches(kernel: Float[Tensor, "D 3 p p"], side: int) -> Float[Tensor, "D 3 q q"]:
    """Resize a patch embedding such that resized patches give the same tokens.

    With B the matrix of the bilinear resize from p x p to q x q pixels, the kernel becomes (B^T)^+ kernel: for q >= p
    the tokens are the same, for q < p the least-squares solution (FlexiViT, arXiv:2212.08013, "PI-resize").

    Args:
        kernel: Of the patch embedding.
        side: q, in pixels.
    """
    if kernel.shape[-1] == side:
        return kernel
    inverse = torch.linalg.pinv(_resize_matrix(kernel.shape[-1], side).T)  # [q q, p p]
    resized: Tensor = (kernel.double().flatten(2) @ inverse.T).unflatten(2, (side, side)).to(kernel.dtype)
    return resized


@cache
def _resize_matrix(before: int, after: int) -> Float[Tensor, "qq pp"]:
    """Return B, which maps flattened pictures of `before` x `before` pixels to `after` x `after`."""
    units = torch.eye(before * before, dtype=torch.float64).view(-1, 1, before, before)
    resized = F.interpolate(units, size=(after, after), mode="bilinear", antialias=True)
    return resized.flatten(1).T
