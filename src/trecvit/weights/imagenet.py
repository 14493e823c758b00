"""First weights from an image model: the spatial half of TRecViT is a ViT, and many ViTs are published.

The paper begins its supervised training with ImageNet-21k weights (paper, section 3 and Tables 3 and 4). Which file it
used is not said; three forms of file are understood here: `.npz` of google-research/vision_transformer (AugReg among
them), and safetensors of timm and of Hugging Face transformers. The temporal half has no counterpart in an image model
and stays as initialised.
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

# Parts of a block, ours -> each dialect's.
_NORMS_AND_MLP = {
    "attention_norm": ("LayerNorm_0", "norm1", "layernorm_before"),
    "mlp_norm": ("LayerNorm_2", "norm2", "layernorm_after"),
    "mlp_up": ("MlpBlock_3/Dense_0", "mlp.fc1", "intermediate.dense"),
    "mlp_down": ("MlpBlock_3/Dense_1", "mlp.fc2", "output.dense"),
    "attention_out": ("MultiHeadDotProductAttention_1/out", "attn.proj", "attention.output.dense"),
}


@dataclass(frozen=True)
class Initialised:
    """What became of an image model's weights.

    Attributes:
        source: The file.
        taken: Names of our tensors that now hold its values.
        fresh: Names of our tensors that stay as initialised: all that knows time, and the head.
        unused: Names in the file that have no place here, such as its own head.
    """

    source: str
    taken: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.source}: {len(self.taken)} tensors taken, {len(self.fresh)} left fresh, "
            f"{len(self.unused)} of the file unused ({', '.join(self.unused) or 'none'})"
        )


@torch.no_grad()
def initialise_from_vit(
    model: VideoModel,
    path: str | Path,
    *,
    mean: float | Sequence[float] | None = None,
    deviation: float | Sequence[float] | None = None,
) -> Initialised:
    """Sets the spatial half of a model to a published ViT.

    Frame by frame, the spatial blocks then compute what the ViT does. Two things are adapted to that end: the ViT saw
    pixels as `(x - mean) / deviation` and this model sees x in [0, 1], so scale and shift go into the patch embedding;
    and the ViT's class token has a position of its own, which goes into the token. Positions are resized if the grids
    differ (bicubic). With temporal patches the embedding looks at the middle frame only, as ViViT begins. A model with
    `gelu="tanh"`, as in the original code, differs a little from timm's and transformers' exact GELU.

    Models of the DINOv2 family are recognised by their layer scales, see `trecvit.weights.dinov2`: these are folded in,
    and patches of 14 pixels are resized to the model's. Their normalisation is ImageNet's.

    Args:
        model: With the ViT's width, depth, heads, MLP and (except DINOv2) patch size.
        path: `.npz` or `.safetensors`.
        mean: Of the ViT's input normalisation, pixels in [0, 1], for all colours or one for each; by default 0.5, and
            ImageNet's for DINOv2.
        deviation: Likewise.

    Raises:
        CheckpointError: When the file is no such ViT, or one of another size; nothing has been changed then.
    """
    path = Path(path)
    if model.tokenizer.config.temporal_mixer == "flat_lru":
        raise CheckpointError(f"{path}: a ViT's blocks have no place in a model of temporal_mixer='flat_lru'")
    arrays = _read(path)
    from_dinov2 = is_dinov2(arrays)
    if from_dinov2:
        arrays = as_plain_vit(arrays)
        kernel = arrays.get("patch_embed.proj.weight")
        if kernel is not None:
            arrays["patch_embed.proj.weight"] = resized_patches(kernel, model.tokenizer.config.patch_size)
    mean = (MEAN if from_dinov2 else 0.5) if mean is None else mean
    deviation = (DEVIATION if from_dinov2 else 0.5) if deviation is None else deviation
    found, used = _in_our_names(arrays, path)
    own = model.state_dict()
    found["tokenizer.embedding.weight"] = _embedding(
        found["tokenizer.embedding.weight"], found, model, torch.tensor(mean), torch.tensor(deviation), path
    )
    strange = sorted(name for name in set(arrays) - used if re.search(r"(block|layer)[s_.]*\d", name))
    if strange:
        raise CheckpointError(f"{path}: its blocks hold what a plain ViT's do not, such as {strange[0]}")
    positions = found.pop("positions")
    cls = found.pop("cls", None)
    if cls is not None:
        cls = cls + positions[0]
        positions = positions[1:]
        if "tokenizer.cls" in own:
            found["tokenizer.cls"] = cls
    if "tokenizer.positions" in own:
        # DINOv2's own code resizes without antialiasing.
        found["tokenizer.positions"] = _resized(positions, model, path, antialias=not from_dinov2)
    depth = 1 + max((int(name.split(".")[1]) for name in found if name.startswith("blocks.")), default=-1)
    wrong = (
        [f"depth: {depth} there, {model.tokenizer.config.depth} here"] if depth != model.tokenizer.config.depth else []
    )
    wrong += [
        f"{name}: {list(tensor.shape)} there, {list(own[name].shape)} here"
        for name, tensor in found.items()
        if name in own and tensor.shape != own[name].shape
    ]
    if wrong:
        raise CheckpointError(f"{path}: a ViT of another size than this model: {'; '.join(wrong[:5])}")
    for name, tensor in found.items():
        own[name].copy_(tensor)
    fresh = tuple(name for name in own if name not in found)
    return Initialised(str(path), tuple(found), fresh, tuple(sorted(set(arrays) - used)))


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(np.asarray(arrays[name], np.float32)) for name in arrays.files}
        return {name: tensor.float() for name, tensor in load_file(path).items()}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile, SafetensorError) as exc:
        raise CheckpointError(f"{path}: expected a ViT as .npz or .safetensors: {exc}") from exc


def _in_our_names(arrays: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], set[str]]:
    """The ViT's tensors under our names, and which names of the file they came from.

    The embedding's weight is still [D, 3, p, p]; "positions" [1 + P, D] and "cls" [D] are as in the file.
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
            f"found names such as {', '.join(sorted(names)[:3]) or 'none'}"
        )
    return dialect.tensors(), dialect.used


class _Torch:
    """timm's and transformers' names: matrices are [out, in] as ours."""

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
        found = {
            "tokenizer.embedding.weight": self.take(f"{self.prefix}{patches}.weight"),
            "tokenizer.embedding.bias": self.take(f"{self.prefix}{patches}.bias"),
            "positions": self.take(self.prefix + ("pos_embed" if timm else "embeddings.position_embeddings"))[0],
            "cls": self.take(self.prefix + ("cls_token" if timm else "embeddings.cls_token"))[0, 0],
        }
        final = "norm" if timm else "layernorm"
        for kind in ("weight", "bias"):
            found[f"norm.{kind}"] = self.take(f"{self.prefix}{final}.{kind}")
        pattern = re.compile(re.escape(self.block).replace(r"\{i\}", r"(\d+)"))
        depth = len({match[1] for name in self.arrays if (match := pattern.match(name))})
        for i in range(depth):
            theirs, ours = self.block.format(i=i), f"blocks.{i}.spatial."
            for kind in ("weight", "bias"):
                for part, dialects in _NORMS_AND_MLP.items():
                    found[f"{ours}{part}.{kind}"] = self.take(f"{theirs}{dialects[self.number]}.{kind}")
                if timm:
                    found[f"{ours}qkv.{kind}"] = self.take(f"{theirs}attn.qkv.{kind}")
                else:
                    parts = [
                        self.take(f"{theirs}attention.attention.{part}.{kind}") for part in ("query", "key", "value")
                    ]
                    found[f"{ours}qkv.{kind}"] = torch.cat(parts)
        return found


class _Flax(_Torch):
    """vision_transformer's names: kernels are [in..., out...], and attention keeps its heads apart."""

    def __init__(self, arrays: Mapping[str, Tensor], path: Path) -> None:
        super().__init__(arrays, path, "", "Transformer/encoderblock_{i}/", number=0)

    def tensors(self) -> dict[str, Tensor]:
        width = len(self.take("embedding/bias"))
        found = {
            "tokenizer.embedding.weight": self.take("embedding/kernel").permute(3, 2, 0, 1),
            "tokenizer.embedding.bias": self.take("embedding/bias"),
            "positions": self.take("Transformer/posembed_input/pos_embedding")[0],
            "norm.weight": self.take("Transformer/encoder_norm/scale"),
            "norm.bias": self.take("Transformer/encoder_norm/bias"),
        }
        if "cls" in self.arrays:
            found["cls"] = self.take("cls")[0, 0]
        depth = len({name.split("/")[1] for name in self.arrays if name.startswith("Transformer/encoderblock_")})
        for i in range(depth):
            theirs, ours = self.block.format(i=i), f"blocks.{i}.spatial."
            for part, (name, _, _) in _NORMS_AND_MLP.items():
                if part.endswith("norm"):
                    found[f"{ours}{part}.weight"] = self.take(f"{theirs}{name}/scale")
                else:
                    kernel = self.take(f"{theirs}{name}/kernel")
                    found[f"{ours}{part}.weight"] = kernel.reshape(-1, kernel.shape[-1]).T
                found[f"{ours}{part}.bias"] = self.take(f"{theirs}{name}/bias")
            attention = f"{theirs}MultiHeadDotProductAttention_1/"
            queries = [attention + part for part in ("query", "key", "value")]
            found[f"{ours}qkv.weight"] = torch.cat([self.take(f"{n}/kernel").reshape(width, -1).T for n in queries])
            found[f"{ours}qkv.bias"] = torch.cat([self.take(f"{n}/bias").flatten() for n in queries])
        return found


def _embedding(
    kernel: Tensor, found: dict[str, Tensor], model: VideoModel, mean: Tensor, deviation: Tensor, path: Path
) -> Tensor:
    """The patch embedding for pixels in [0, 1] and for temporal patches; shifts the bias that belongs to it."""
    side, extent = model.tokenizer.config.patch_size, model.tokenizer.config.temporal_patch_size
    if kernel.shape[1:] != (3, side, side):
        raise CheckpointError(
            f"{path}: its patches are {kernel.shape[-1]} pixels wide with {kernel.shape[1]} colours; "
            f"this model's are {side} with 3"
        )
    bias = found["tokenizer.embedding.bias"]
    found["tokenizer.embedding.bias"] = bias - (kernel.sum(dim=(2, 3)) * (mean / deviation)).sum(dim=1)
    over_time = torch.zeros(len(kernel), 3, extent, side, side)
    over_time[:, :, extent // 2] = kernel / deviation.expand(3)[:, None, None]
    return over_time.flatten(1)


def _resized(positions: Tensor, model: VideoModel, path: Path, *, antialias: bool) -> Tensor:
    side = round(len(positions) ** 0.5)
    if side * side != len(positions):
        raise CheckpointError(f"{path}: expected positions of a square grid, got {len(positions)}")
    rows, columns = (length // model.tokenizer.config.patch_size for length in model.tokenizer.config.image_size)
    grid = positions.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if (rows, columns) != (side, side):
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=antialias)
    return grid[0].flatten(1).T
