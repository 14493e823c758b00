"""DINOv2's models: one frame through tokenizer and spatial blocks equals transformers' `Dinov2Model`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from trecvit.config import model_config
from trecvit.errors import CheckpointError
from trecvit.model.trecvit import TRecViT
from trecvit.weights.dinov2 import DEVIATION, MEAN, resized_patches
from trecvit.weights.imagenet import initialise_from_vit

WIDTH, DEPTH, HEADS, THEIR_PATCH, PATCH, GRID = 24, 2, 3, 14, 16, 3
REAL = Path(os.environ.get("TRECVIT_DINOV2", Path(__file__).parents[2] / "shared/data/vit_s14/model.safetensors"))


def their_model(width=WIDTH, depth=DEPTH, heads=HEADS, stored_grid=5):
    """transformers' network with layer scales, biases and norms that are not what they begin with."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    config = transformers.Dinov2Config(
        hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, mlp_ratio=4, patch_size=THEIR_PATCH,
        image_size=stored_grid * THEIR_PATCH, attn_implementation="eager",
    )  # fmt: skip
    network = transformers.Dinov2Model(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn(parameter.shape) * (0.3 if parameter.dim() < 2 else 0.05))
    return network


def our_model(**fields):
    size = {
        "width": WIDTH,
        "depth": DEPTH,
        "num_heads": HEADS,
        "mlp_width": 4 * WIDTH,
        "head_width": 8,
        "num_classes": 2,
    }
    grid = {"patch_size": PATCH, "image_size": (GRID * PATCH, GRID * PATCH), "gelu": "erf", "temporal_mixer": "none"}
    return TRecViT(model_config("tiny", **{**size, **grid, **fields})).eval()


def patchwise(pictures, side):
    """Each patch resized by itself, which is what a resized patch embedding undoes exactly."""
    patches = pictures.unfold(2, THEIR_PATCH, THEIR_PATCH).unfold(3, THEIR_PATCH, THEIR_PATCH)  # [B,3,rows,columns,p,p]
    rows, columns = patches.shape[2:4]
    resized = F.interpolate(patches.flatten(0, 3)[:, None], size=(side, side), mode="bilinear", antialias=True)
    resized = resized.view(len(pictures), 3, rows, columns, side, side)
    return resized.permute(0, 1, 2, 4, 3, 5).reshape(len(pictures), 3, rows * side, columns * side)


def features(network, pictures):
    normalised = (pictures - torch.tensor(MEAN)[:, None, None]) / torch.tensor(DEVIATION)[:, None, None]
    return network(normalised).last_hidden_state


def as_stored(network, folder):
    """The tensors of transformers' file, which has other names than the network."""
    network.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def in_timms_names(state, depth):
    """As timm stores them: queries, keys and values together, layer scales as ls1 and ls2."""
    tensors = {
        "cls_token": state["embeddings.cls_token"], "pos_embed": state["embeddings.position_embeddings"],
        "patch_embed.proj.weight": state["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": state["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": state["layernorm.weight"], "norm.bias": state["layernorm.bias"],
    }  # fmt: skip
    for i in range(depth):
        theirs, ours = f"encoder.layer.{i}.", f"blocks.{i}."
        for kind in ("weight", "bias"):
            for part, name in {
                "norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.output.dense", "mlp.fc1": "mlp.fc1",
                "mlp.fc2": "mlp.fc2",
            }.items():  # fmt: skip
                tensors[f"{ours}{part}.{kind}"] = state[f"{theirs}{name}.{kind}"]
            three = [state[f"{theirs}attention.attention.{name}.{kind}"] for name in ("query", "key", "value")]
            tensors[f"{ours}attn.qkv.{kind}"] = torch.cat(three)
        for number in (1, 2):
            tensors[f"{ours}ls{number}.gamma"] = state[f"{theirs}layer_scale{number}.lambda1"]
    return tensors


@pytest.mark.parametrize("names", ["timm", "transformers", "transformers, whole", "apart"])
@torch.no_grad()
def test_one_frame_gives_the_vit_s_features(tmp_path, names):
    network = their_model()
    tensors = as_stored(network, tmp_path / "theirs")
    if names in ("timm", "apart"):
        tensors = in_timms_names(tensors, DEPTH)
    if names == "apart":
        positions, token = tensors.pop("pos_embed"), tensors["cls_token"]
        tensors |= {"pos_embed_patch": positions[:, 1:], "cls_plus": token + positions[:, :1]}
        tensors["cls_token"] = tensors["cls_plus"]
    prefix = "dinov2." if names.endswith("whole") else ""
    save_file(
        {prefix + name: tensor.contiguous().clone() for name, tensor in tensors.items()}, tmp_path / "vit.safetensors"
    )
    model = our_model()
    initialised = initialise_from_vit(model, tmp_path / "vit.safetensors")
    pictures = torch.rand(2, 3, GRID * THEIR_PATCH, GRID * THEIR_PATCH)
    expected = features(network, pictures)
    got = model(patchwise(pictures, PATCH).clamp(0, 1)[:, None]).features[:, 0]
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()
    assert not any(name.startswith("blocks") for name in initialised.initial)


@torch.no_grad()
def test_with_a_temporal_part_at_its_identity_too(tmp_path):
    network = their_model()
    network.save_pretrained(tmp_path)
    model = our_model(temporal_mixer="lru")
    initialise_from_vit(model, tmp_path / "model.safetensors")
    for block in model.blocks:
        block.temporal.linear_out.weight.zero_()
        block.temporal.linear_out.bias.zero_()
    pictures = torch.rand(1, 3, GRID * THEIR_PATCH, GRID * THEIR_PATCH)
    expected = features(network, pictures)
    got = model(patchwise(pictures, PATCH).clamp(0, 1)[:, None].expand(1, 3, -1, -1, -1)).features
    for frame in got.unbind(1):
        assert (frame - expected).abs().max() < 1e-4 * expected.abs().max()


def test_resized_patches_give_the_same_tokens_when_larger_and_near_ones_when_smaller():
    kernel = torch.randn(5, 3, 14, 14)
    patches = torch.rand(7, 3, 14, 14)
    tokens = F.conv2d(patches, kernel).flatten(1)
    for side, tolerance in ((14, 0.0), (16, 1e-5), (28, 1e-5)):
        resized = F.interpolate(patches, size=(side, side), mode="bilinear", antialias=True)
        error = (F.conv2d(resized, resized_patches(kernel, side)).flatten(1) - tokens).abs().max() / tokens.abs().max()
        assert error <= tolerance, side
    smooth = F.interpolate(torch.rand(7, 3, 4, 4), size=(14, 14), mode="bicubic")
    tokens = F.conv2d(smooth, kernel).flatten(1)
    shrunk = F.interpolate(smooth, size=(8, 8), mode="bilinear", antialias=True)
    error = F.conv2d(shrunk, resized_patches(kernel, 8)).flatten(1) - tokens
    assert error.abs().max() < 0.35 * tokens.abs().max()


def test_another_size_is_refused_by_name(tmp_path):
    network = their_model(depth=1)
    network.save_pretrained(tmp_path)
    model = our_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="depth"):
        initialise_from_vit(model, tmp_path / "model.safetensors")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.skipif(not REAL.exists(), reason="weights of a real DINOv2 ViT-S/14 are not at hand")
@torch.no_grad()
def test_real_weights_give_the_same_features(tmp_path):
    transformers = pytest.importorskip("transformers")
    tensors = {name: tensor.float() for name, tensor in load_file(REAL).items()}
    config = transformers.Dinov2Config(
        hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14,
        attn_implementation="eager",
    )  # fmt: skip
    transformers.Dinov2Model(config).save_pretrained(tmp_path)  # for its config.json
    positions = torch.cat([torch.zeros(1, 1, 384), tensors["pos_embed_patch"]], dim=1)
    state = {
        "embeddings.cls_token": tensors["cls_plus"], "embeddings.position_embeddings": positions,
        "embeddings.mask_token": torch.zeros(1, 384),
        "embeddings.patch_embeddings.projection.weight": tensors["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": tensors["patch_embed.proj.bias"],
        "layernorm.weight": tensors["norm.weight"], "layernorm.bias": tensors["norm.bias"],
    }  # fmt: skip
    for i in range(12):
        ours, theirs = f"blocks.{i}.", f"encoder.layer.{i}."
        for kind in ("weight", "bias"):
            for part, name in {
                "norm1": "norm1", "norm2": "norm2", "attn.proj": "attention.output.dense", "mlp.fc1": "mlp.fc1",
                "mlp.fc2": "mlp.fc2",
            }.items():  # fmt: skip
                state[f"{theirs}{name}.{kind}"] = tensors[f"{ours}{part}.{kind}"]
            for name, part in zip(("query", "key", "value"), tensors[f"{ours}attn.qkv.{kind}"].chunk(3), strict=True):
                state[f"{theirs}attention.attention.{name}.{kind}"] = part
        for number in (1, 2):
            state[f"{theirs}layer_scale{number}.lambda1"] = tensors[f"{ours}ls{number}.gamma"]
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    network = transformers.Dinov2Model.from_pretrained(tmp_path, attn_implementation="eager").eval()
    model = TRecViT(model_config("small", gelu="erf", temporal_mixer="none", num_classes=0)).eval()
    initialise_from_vit(model, REAL)
    pictures = F.interpolate(torch.rand(1, 3, 12, 12), size=(196, 196), mode="bicubic").clamp(0, 1)
    expected = features(network, pictures)
    got = model(patchwise(pictures, 16).clamp(0, 1)[:, None]).features[:, 0]
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()
