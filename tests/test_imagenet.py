"""Image models' files: each dialect is written here from one made-up ViT, and that ViT is computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from trecvit.config import model_config
from trecvit.errors import CheckpointError
from trecvit.model.trecvit import TRecViT
from trecvit.weights.imagenet import initialise_from_vit

WIDTH, DEPTH, HEADS, MLP, SIDE, PATCH = 24, 2, 3, 40, 32, 8
GRID = SIDE // PATCH


def vit() -> dict[str, torch.Tensor]:
    """Random weights in timm's names, every one of them different from its initial value."""
    torch.manual_seed(3)
    tensors = {
        "cls_token": torch.randn(1, 1, WIDTH),
        "pos_embed": torch.randn(1, 1 + GRID * GRID, WIDTH),
        "patch_embed.proj.weight": torch.randn(WIDTH, 3, PATCH, PATCH) * 0.1,
        "patch_embed.proj.bias": torch.randn(WIDTH),
        "norm.weight": torch.rand(WIDTH) + 0.5,
        "norm.bias": torch.randn(WIDTH),
        "head.weight": torch.randn(10, WIDTH),
        "head.bias": torch.randn(10),
    }
    for i in range(DEPTH):
        for name, shape in {
            "norm1": (WIDTH,), "norm2": (WIDTH,), "attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH),
            "mlp.fc1": (MLP, WIDTH), "mlp.fc2": (WIDTH, MLP),
        }.items():  # fmt: skip
            tensors[f"blocks.{i}.{name}.weight"] = torch.randn(shape) * 0.3 + (1.0 if len(shape) == 1 else 0.0)
            tensors[f"blocks.{i}.{name}.bias"] = torch.randn(shape[0]) * 0.3
    return tensors


def vit_features(tensors: dict[str, torch.Tensor], pictures: torch.Tensor) -> torch.Tensor:
    """What the ViT computes of pictures [B,3,H,W] in [0,1], normalised with 0.5 and 0.5: [B, 1 + P, D]."""
    x = F.conv2d((pictures - 0.5) / 0.5, tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"], PATCH)
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([tensors["cls_token"].expand(len(x), -1, -1), x], dim=1) + tensors["pos_embed"]
    for i in range(DEPTH):
        own = {name.removeprefix(f"blocks.{i}."): t for name, t in tensors.items() if name.startswith(f"blocks.{i}.")}
        n = F.layer_norm(x, (WIDTH,), own["norm1.weight"], own["norm1.bias"], 1e-6)
        qkv = F.linear(n, own["attn.qkv.weight"], own["attn.qkv.bias"])
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        mixed = (q @ k.mT / math.sqrt(WIDTH // HEADS)).softmax(dim=-1) @ v
        x = x + F.linear(mixed.transpose(1, 2).flatten(2), own["attn.proj.weight"], own["attn.proj.bias"])
        n = F.layer_norm(x, (WIDTH,), own["norm2.weight"], own["norm2.bias"], 1e-6)
        hidden = F.gelu(F.linear(n, own["mlp.fc1.weight"], own["mlp.fc1.bias"]), approximate="tanh")
        x = x + F.linear(hidden, own["mlp.fc2.weight"], own["mlp.fc2.bias"])
    return F.layer_norm(x, (WIDTH,), tensors["norm.weight"], tensors["norm.bias"], 1e-6)


def as_transformers(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    names = {
        "cls_token": "embeddings.cls_token", "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm",
    }  # fmt: skip
    parts = {
        "norm1": "layernorm_before", "norm2": "layernorm_after", "attn.proj": "attention.output.dense",
        "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
    }  # fmt: skip
    out = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if name.startswith("head"):
            out[name.replace("head", "classifier")] = tensor
        elif name.startswith("blocks."):
            _, number, part = stem.split(".", 2)
            layer = f"{prefix}encoder.layer.{number}."
            if part == "attn.qkv":
                for each, chunk in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                    out[f"{layer}attention.attention.{each}.{kind}"] = chunk.contiguous()
            else:
                out[f"{layer}{parts[part]}.{kind}"] = tensor
        else:
            out[prefix + (names[name] if name in names else f"{names[stem]}.{kind}")] = tensor
    return out


def as_flax(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    out = {
        "cls": tensors["cls_token"],
        "Transformer/posembed_input/pos_embedding": tensors["pos_embed"],
        "embedding/kernel": tensors["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": tensors["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": tensors["norm.weight"],
        "Transformer/encoder_norm/bias": tensors["norm.bias"],
        "head/kernel": tensors["head.weight"].T,
        "head/bias": tensors["head.bias"],
    }
    for i in range(DEPTH):
        ours, theirs = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        for mine, name in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            out[f"{theirs}{name}/scale"] = tensors[f"{ours}{mine}.weight"]
            out[f"{theirs}{name}/bias"] = tensors[f"{ours}{mine}.bias"]
        for mine, name in (("mlp.fc1", "MlpBlock_3/Dense_0"), ("mlp.fc2", "MlpBlock_3/Dense_1")):
            out[f"{theirs}{name}/kernel"] = tensors[f"{ours}{mine}.weight"].T
            out[f"{theirs}{name}/bias"] = tensors[f"{ours}{mine}.bias"]
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        weights, biases = tensors[f"{ours}attn.qkv.weight"].chunk(3), tensors[f"{ours}attn.qkv.bias"].chunk(3)
        for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
            out[f"{attention}{name}/kernel"] = weight.T.reshape(WIDTH, HEADS, -1)
            out[f"{attention}{name}/bias"] = bias.reshape(HEADS, -1)
        out[f"{attention}out/kernel"] = tensors[f"{ours}attn.proj.weight"].T.reshape(HEADS, -1, WIDTH)
        out[f"{attention}out/bias"] = tensors[f"{ours}attn.proj.bias"]
    return {name: tensor.numpy() for name, tensor in out.items()}


def written(tensors: dict[str, torch.Tensor], dialect: str, folder):
    if dialect == "vision_transformer":
        np.savez(folder / "vit.npz", **as_flax(tensors))
        return folder / "vit.npz"
    if dialect != "timm":
        tensors = as_transformers(tensors, "vit." if dialect == "transformers" else "")
    save_file(tensors, folder / "vit.safetensors")
    return folder / "vit.safetensors"


def network(**fields) -> TRecViT:
    sizes = {"width": WIDTH, "depth": DEPTH, "num_heads": HEADS, "mlp_width": MLP, "patch_size": PATCH}
    return TRecViT(model_config("tiny", **{**sizes, "image_size": SIDE, "num_classes": 5, "head_width": 8, **fields}))


DIALECTS = ["vision_transformer", "timm", "transformers", "transformers without a head"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_frame_by_frame_the_model_is_the_vit(tmp_path, dialect):
    tensors = vit()
    model = network()
    for block in model.blocks:  # without what mixes over time, each frame is a picture
        torch.nn.init.zeros_(block.temporal.linear_out.weight)
    report = initialise_from_vit(model, written(tensors, dialect, tmp_path))
    video = torch.rand(2, 3, 3, SIDE, SIDE)
    expected = vit_features(tensors, video.flatten(0, 1)).unflatten(0, (2, 3))
    torch.testing.assert_close(model(video).features, expected, rtol=1e-4, atol=1e-4)
    assert len(report.unused) == 2
    assert all("head" in name or "classifier" in name for name in report.unused)
    assert all(".temporal." in name or name.startswith("head.") for name in report.initial)
    assert set(report.loaded) | set(report.initial) == set(model.state_dict())
    assert "2 of the file unused" in str(report)


def test_what_is_fresh_is_left_alone(tmp_path):
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = initialise_from_vit(model, written(vit(), "timm", tmp_path))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name in report.initial), name


def test_positions_are_resized_to_another_grid(tmp_path):
    tensors = vit()
    model = network(image_size=(64, 48))
    initialise_from_vit(model, written(tensors, "timm", tmp_path))
    grid = tensors["pos_embed"][:, 1:].reshape(1, GRID, GRID, WIDTH).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(8, 6), mode="bicubic", antialias=True)[0].flatten(1).T
    torch.testing.assert_close(model.tokenizer.positions.detach(), expected)


def test_without_a_class_token_of_its_own_the_model_takes_the_patches_only(tmp_path):
    tensors = vit()
    model = network(pooling="mean")
    report = initialise_from_vit(model, written(tensors, "timm", tmp_path))
    torch.testing.assert_close(model.tokenizer.positions.detach(), tensors["pos_embed"][0, 1:])
    assert "tokenizer.cls" not in report.loaded


def test_with_temporal_patches_the_embedding_sees_the_middle_frame(tmp_path):
    tensors = vit()
    model = network(temporal_patch_size=4)
    initialise_from_vit(model, written(tensors, "timm", tmp_path))
    frames = torch.rand(1, 4, 3, SIDE, SIDE)
    tokens = model.tokenizer(frames)[0, 0, 1:] - model.tokenizer.positions
    normalised = (frames[:, 2] - 0.5) / 0.5
    expected = F.conv2d(normalised, tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"], PATCH)
    torch.testing.assert_close(tokens, expected[0].flatten(1).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"depth": 3}, "depth: expected 3 or more, got 2"),
        ({"mlp_width": 48}, r"mlp_up.weight: expected \[48, 24\], got \[40, 24\]"),
        ({"patch_size": 16}, "expected patches of 16 pixels and 3 colours, got 8 pixels"),
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS[:3])
def test_a_vit_of_another_size_changes_nothing(tmp_path, dialect, fields, complaint):
    model = network(**fields)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=complaint):
        initialise_from_vit(model, written(vit(), dialect, tmp_path))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_files_that_are_no_vit_are_refused(tmp_path):
    tensors = vit()
    del tensors["blocks.1.mlp.fc2.bias"]
    with pytest.raises(CheckpointError, match=r"'blocks.1.mlp.fc2.bias' is missing"):
        initialise_from_vit(network(), written(tensors, "timm", tmp_path))
    save_file({"something": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="got names such as something"):
        initialise_from_vit(network(), tmp_path / "other.safetensors")
    for name, content in (("a.npz", b"PK nothing"), ("b.safetensors", b"nothing"), ("c.npz", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match="expected a ViT"):
            initialise_from_vit(network(), tmp_path / name)
    np.savez(tmp_path / "pickled.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(CheckpointError, match="expected a ViT"):
        initialise_from_vit(network(), tmp_path / "pickled.npz")
