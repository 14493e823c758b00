"""Initialisation from a published ViT: the spatial half of TRecViT is a ViT.

The paper starts supervised training from ImageNet-21k weights (paper, section 3 and Tables 3 and 4) without naming the
file. Three formats are read: `.npz` of google-research/vision_transformer (such as AugReg), and safetensors of timm and
of Hugging Face transformers. The temporal half has no counterpart in an image model and keeps its initial weights.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trecvit.errors import CheckpointError
from trecvit.model.trecvit import VideoModel
from trecvit.weights.dinov2 import DEVIATION, MEAN, as_plain_vit, is_dinov2, resized_patches

_NAMED = 6  # unused tensors in a report

# Parts of a block: our name -> the name in each format (vision_transformer, timm, transformers).
_NORMS_AND_MLP = {
    "attention_norm": ("LayerNorm_0", "norm1", "layernorm_before"),
    "mlp_norm": ("LayerNorm_2", "norm2", "layernorm_after"),
    "mlp_up": ("MlpBlock_3/Dense_0", "mlp.fc1", "intermediate.dense"),
    "mlp_down": ("MlpBlock_3/Dense_1", "mlp.fc2", "output.dense"),
    "attention_out": ("MultiHeadDotProductAttention_1/out", "attn.proj", "attention.output.dense"),
}


@dataclass(frozen=True)
class Initialised:
    """Report of an initialisation from an image model.

    Attributes:
        source: The file.
        loaded: Names of our tensors that were set from it.
        initial: Names of our tensors that keep their initial values: the temporal half and the head.
        unused: Names in the file without a counterpart here, such as its head; our names for blocks above the model's.
    """

    source: str
    loaded: tuple[str, ...]
    initial: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        names = ", ".join([*self.unused[:_NAMED], *(["…"] if len(self.unused) > _NAMED else [])])
        return (
            f"{self.source}: {len(self.loaded)} tensors loaded, {len(self.initial)} randomly initialised, "
            f"{len(self.unused)} of the file unused ({names or 'none'})"
        )


@torch.no_grad()
def initialise_from_vit(
    model: VideoModel,
    path: str | Path,
    *,
    mean: float | Sequence[float] | None = None,
    deviation: float | Sequence[float] | None = None,
) -> Initialised:
    """Set the spatial half of a model to a published ViT.

    The spatial blocks then compute the same as the ViT on each frame. The ViT's input is `(x - mean) / deviation` and
    ours is x in [0, 1], so the patch embedding absorbs scale and shift. The position of the ViT's class token is added
    to the token. Positions are resized (bicubic) if the grids differ. With temporal patches the embedding starts from
    the middle frame alone, as in ViViT. A model with `gelu="tanh"`, as in the official code, differs a little from
    timm's and transformers' exact GELU, which is `gelu="erf"`.

    Models of the DINOv2 family are recognised by their layer scales, see `trecvit.weights.dinov2`: these are folded in,
    and patches of 14 pixels are resized to the model's.

    Args:
        model: A model with the ViT's width, heads, MLP and (except for DINOv2) patch size, and at most its depth: a
            shallower model takes the first blocks.
        path: `.npz` or `.safetensors`.
        mean: Mean of the ViT's input normalisation, for pixels in [0, 1]: one for all colours or one for each. Default:
            0.5, and ImageNet's for DINOv2.
        deviation: Standard deviation of that normalisation.

    Raises:
        CheckpointError: The file is not such a ViT, or has another size; the model is unchanged then.
    """
    path = Path(path)
    if model.tokenizer.config.temporal_mixer == "flat_lru":
        raise CheckpointError(f"{path}: expected a model with spatial blocks, got temporal_mixer='flat_lru'")
    arrays = _read(path)
    from_dinov2 = is_dinov2(arrays)
    if from_dinov2:
        arrays = as_plain_vit(arrays)
        if (kernel := arrays.get("patch_embed.proj.weight")) is not None:
            arrays["patch_embed.proj.weight"] = resized_patches(kernel, model.tokenizer.config.patch_size)
    mean = (MEAN if from_dinov2 else 0.5) if mean is None else mean
    deviation = (DEVIATION if from_dinov2 else 0.5) if deviation is None else deviation
    weights, used = _to_our_names(arrays, path)
    own = model.state_dict()
    weights["tokenizer.embedding.weight"] = _embedding(
        weights["tokenizer.embedding.weight"], weights, model, torch.tensor(mean), torch.tensor(deviation), path
    )
    unexpected = sorted(name for name in set(arrays) - used if re.search(r"(block|layer)[s_.]*\d", name))
    if unexpected:
        raise CheckpointError(f"{path}: expected the blocks of a plain ViT, got also {unexpected[0]}")
    positions = weights.pop("positions")
    cls = weights.pop("cls", None)
    if cls is not None:
        cls = cls + positions[0]
        positions = positions[1:]
        if "tokenizer.cls" in own:
            weights["tokenizer.cls"] = cls
    if "tokenizer.positions" in own:
        # DINOv2's own code resizes without antialiasing.
        weights["tokenizer.positions"] = _resized(positions, model, path, antialias=not from_dinov2)
    depth = 1 + max((int(name.split(".")[1]) for name in weights if name.startswith("blocks.")), default=-1)
    expected_depth = model.tokenizer.config.depth
    mismatches = [f"depth: expected {expected_depth} or more, got {depth}"] if depth < expected_depth else []
    above = tuple(name for name in weights if name.startswith("blocks.") and int(name.split(".")[1]) >= expected_depth)
    for name in above:
        del weights[name]
    mismatches += [
        f"{name}: expected {list(own[name].shape)}, got {list(tensor.shape)}"
        for name, tensor in weights.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if mismatches:
        raise CheckpointError(f"{path}: not the size of this model: {'; '.join(mismatches[:5])}")
    for name, tensor in weights.items():
        own[name].copy_(tensor)
    initial = tuple(name for name in own if name not in weights)
    return Initialised(str(path), tuple(weights), initial, (*sorted(set(arrays) - used), *above))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(np.asarray(arrays[name], np.float32)) for name in arrays.files}
        return {name: tensor.float() for name, tensor in load_file(path).items()}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, SafetensorError) as exc:
        raise CheckpointError(f"{path}: expected a ViT as .npz or .safetensors: {exc}") from exc


def _to_our_names(arrays: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], set[str]]:
    """Rename the ViT's tensors; return them and the names of the file that were used.

    The embedding's weight stays [D, 3, p, p]; "positions" [1 + P, D] and "cls" [D] are as in the file.
    """
    names = set(arrays)
    if "Transformer/posembed_input/pos_embedding" in names:
        dialect: _Torch = _Flax(arrays, path)
    elif "patch_embed.proj.weight" in names:
        dialect = _Torch(arrays, path, "", "blocks.{i}.", number=1)
    elif any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in names):
        prefix = "vit." if "vit.embeddings.cls_token" in names else ""
        dialect = _Torch(arrays, path, prefix, prefix + "encoder.layer.{i}.", number=2)
    else:
        raise CheckpointError(
            f"{path}: expected a ViT of vision_transformer (.npz), timm or transformers (.safetensors); "
            f"got names such as {', '.join(sorted(names)[:3]) or 'none'}"
        )
    return dialect.tensors(), dialect.used


class _Torch:
    """Names of timm and transformers: matrices are [out, in], as ours."""

    def __init__(self, arrays: Mapping[str, Tensor], path: Path, prefix: str, block: str, *, number: int) -> None:
        self.arrays, self.path, self.prefix, self.block, self.number = arrays, path, prefix, block, number
        self.used: set[str] = set()

    def take(self, name: str) -> Tensor:
        if name not in self.arrays:
            raise CheckpointError(f"{self.path}: {name!r} is missing")
        self.used.add(name)
        return self.arrays[name]

    def tensors(self) -> dict[str, Tensor]:
        timm = self.number == 1
        patches = "patch_embed.proj" if timm else "embeddings.patch_embeddings.projection"
        weights = {
            "tokenizer.embedding.weight": self.take(f"{self.prefix}{patches}.weight"),
            "tokenizer.embedding.bias": self.take(f"{self.prefix}{patches}.bias"),
            "positions": self.take(self.prefix + ("pos_embed" if timm else "embeddings.position_embeddings"))[0],
            "cls": self.take(self.prefix + ("cls_token" if timm else "embeddings.cls_token"))[0, 0],
        }
        final = "norm" if timm else "layernorm"
        for kind in ("weight", "bias"):
            weights[f"norm.{kind}"] = self.take(f"{self.prefix}{final}.{kind}")
        pattern = re.compile(re.escape(self.block).replace(r"\{i\}", r"(\d+)"))
        depth = len({match[1] for name in self.arrays if (match := pattern.match(name))})
        for i in range(depth):
            source, target = self.block.format(i=i), f"blocks.{i}.spatial."
            for kind in ("weight", "bias"):
                for part, dialects in _NORMS_AND_MLP.items():
                    weights[f"{target}{part}.{kind}"] = self.take(f"{source}{dialects[self.number]}.{kind}")
                if timm:
                    weights[f"{target}qkv.{kind}"] = self.take(f"{source}attn.qkv.{kind}")
                else:
                    parts = [
                        self.take(f"{source}attention.attention.{part}.{kind}") for part in ("query", "key", "value")
                    ]
                    weights[f"{target}qkv.{kind}"] = torch.cat(parts)
        return weights


class _Flax(_Torch):
    """Names of vision_transformer: kernels are [in..., out...], and attention has an axis of heads."""

    def __init__(self, arrays: Mapping[str, Tensor], path: Path) -> None:
        super().__init__(arrays, path, "", "Transformer/encoderblock_{i}/", number=0)

    def tensors(self) -> dict[str, Tensor]:
        width = len(self.take("embedding/bias"))
        weights = {
            "tokenizer.embedding.weight": self.take("embedding/kernel").permute(3, 2, 0, 1),
            "tokenizer.embedding.bias": self.take("embedding/bias"),
            "positions": self.take("Transformer/posembed_input/pos_embedding")[0],
            "norm.weight": self.take("Transformer/encoder_norm/scale"),
            "norm.bias": self.take("Transformer/encoder_norm/bias"),
        }
        if "cls" in self.arrays:
            weights["cls"] = self.take("cls")[0, 0]
        depth = len({name.split("/")[1] for name in self.arrays if name.startswith("Transformer/encoderblock_")})
        for i in range(depth):
            source, target = self.block.format(i=i), f"blocks.{i}.spatial."
            for part, (name, _, _) in _NORMS_AND_MLP.items():
                if part.endswith("norm"):
                    weights[f"{target}{part}.weight"] = self.take(f"{source}{name}/scale")
                else:
                    kernel = self.take(f"{source}{name}/kernel")
                    weights[f"{target}{part}.weight"] = kernel.reshape(-1, kernel.shape[-1]).T
                weights[f"{target}{part}.bias"] = self.take(f"{source}{name}/bias")
            attention = f"{source}MultiHeadDotProductAttention_1/"
            queries = [attention + part for part in ("query", "key", "value")]
            weights[f"{target}qkv.weight"] = torch.cat([self.take(f"{n}/kernel").reshape(width, -1).T for n in queries])
            weights[f"{target}qkv.bias"] = torch.cat([self.take(f"{n}/bias").flatten() for n in queries])
        return weights


def _embedding(
    kernel: Tensor, weights: dict[str, Tensor], model: VideoModel, mean: Tensor, deviation: Tensor, path: Path
) -> Tensor:
    """Return the patch embedding for pixels in [0, 1] and temporal patches; also shift its bias in `weights`."""
    side, extent = model.tokenizer.config.patch_size, model.tokenizer.config.temporal_patch_size
    if kernel.shape[1:] != (3, side, side):
        raise CheckpointError(
            f"{path}: expected patches of {side} pixels and 3 colours, got {kernel.shape[-1]} pixels and "
            f"{kernel.shape[1]} colours"
        )
    bias = weights["tokenizer.embedding.bias"]
    weights["tokenizer.embedding.bias"] = bias - (kernel.sum(dim=(2, 3)) * (mean / deviation)).sum(dim=1)
    over_time = torch.zeros(len(kernel), 3, extent, side, side)
    over_time[:, :, extent // 2] = kernel / deviation.expand(3)[:, None, None]
    return over_time.flatten(1)


def _resized(positions: Tensor, model: VideoModel, path: Path, *, antialias: bool) -> Tensor:
    side = round(len(positions) ** 0.5)
    if side * side != len(positions):
        raise CheckpointError(f"{path}: expected a square grid of positions, got {len(positions)}")
    rows, columns = (length // model.tokenizer.config.patch_size for length in model.tokenizer.config.image_size)
    grid = positions.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if (rows, columns) != (side, side):
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=antialias)
    return grid[0].flatten(1).T
