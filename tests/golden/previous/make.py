"""Writes the files beside this script with the version of trecvit that is installed; see README.md."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

import trecvit
from trecvit.config import AutoencoderConfig, decoder_config
from trecvit.errors import Interrupted
from trecvit.model.mae import MaskedAutoencoder
from trecvit.train.loop import Progress, train
from trecvit.train.recipe import load_recipe

BLOCKS: dict[str, Any] = {
    "width": 8, "depth": 1, "num_heads": 2, "mlp_width": 8, "patch_size": 4, "image_size": [8, 8], "head_width": 4,
    "num_classes": 3, "temporal_positions": 4,
}  # fmt: skip
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "lru": {},
    "lru_wide": {"lru_multiplier": 2, "temporal_mlp": True, "gelu": "erf", "pooling": "mean", "positions": "sincos2d"},
    "lru_complex": {"lru_complex": True, "temporal_patch_size": 2},
    "lru_no_gates": {"lru_gates": False, "conv_width": 0},
    "lstm": {"temporal_mixer": "lstm"},
    "conv": {"temporal_mixer": "conv", "temporal_skip": False},
    "attention": {"temporal_mixer": "attention"},
    "none": {"temporal_mixer": "none"},
    "full_attention": {"temporal_mixer": "full_attention"},
    "causal_attention": {"temporal_mixer": "causal_attention"},
    "flat_lru": {"temporal_mixer": "flat_lru", "pooling": "mean"},
}
CAN_STREAM = ("lru", "lru_wide", "lru_complex", "lru_no_gates", "lstm", "conv", "none")
RECIPE: dict[str, Any] = {
    "model": {**BLOCKS, "image_size": [32, 32], "num_classes": 0, "pooling": "mean", "positions": "sincos2d"},
    "preprocessing": {"image_size": [32, 32], "num_frames": 4, "frame_stride": 1},
    "optimisation": {"bf16": False, "num_steps": 6, "batch_size": 4, "warmup_steps": 2},
    "num_workers": 0,
    "log_every": 1,
    "checkpoint_every": 3,
    "keep_checkpoints": 1,
}
WORLD = {"world": {"num_frames": 4, "image_size": [32, 32]}, "photographs": False}
RUNS: dict[str, dict[str, Any]] = {
    "classify": {
        "model": {**RECIPE["model"], "num_classes": 18},
        "scenes": {**WORLD, "views_per_scene": 2, "easy_steps": 4},
        "optimisation": {**RECIPE["optimisation"], "muon_learning_rate": 0.01, "ema_decay": 0.9},
    },
    "track": {
        "model": {
            "blocks": {**RECIPE["model"], "temporal_mlp": True},
            "raster_px": 16,
            "readout_width": 8,
        },
        "tracks": {
            "scenes": {"min_things": 1, "max_things": 2},
            "num_points": 4,
            "photographs": False,
            "validation_scenes": 1,
        },
    },
    "mae": {
        "scenes": WORLD,
        "mae": {
            "mask_ratio": 0.75,
            "decoder": {"width": 8, "depth": 1, "num_heads": 2, "mlp_width": 8, "temporal_mixer": "none"},
            "validation_clips": 1,
        },
    },
}
Tensors = dict[str, torch.Tensor]


def moved(model: torch.nn.Module) -> Any:
    """The model with every weight away from its initial value, so that one that is not read shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model.eval()


def numbered(name: str, parts: Any) -> Tensors:
    return {f"{name}.{key}": value for key, value in parts._asdict().items() if value is not None}


def models(folder: Path) -> None:
    """Folders of every architecture, states half way through a video, and the outputs over all of it."""
    video = torch.randint(0, 256, (1, 4, 3, 8, 8), dtype=torch.uint8)
    query_points_tyx = torch.tensor([[[0.0, 1.0, 6.0], [2.0, 4.5, 4.5]]])
    preprocessing = trecvit.Preprocessing(image_size=(8, 8), num_frames=4, frame_stride=1)
    expected: Tensors = {"video": video, "query_points_tyx": query_points_tyx}
    for name, fields in CLASSIFIERS.items():
        config = trecvit.ModelConfig(**{**BLOCKS, **fields})
        model = moved(trecvit.TRecViT(config, preprocessing=preprocessing))
        model.relabel(["falls", "rises", "stands still"])
        model.save(folder / "models" / name)
        with torch.no_grad():
            expected |= numbered(name, model(video))
            if name in CAN_STREAM:
                _, state = model.step(video[:, :3], model.init_state(1))
                state.save(folder / "states" / f"{name}.safetensors")
    blocks = {**BLOCKS, "num_classes": 0, "pooling": "mean"}
    trackers = {
        "tapnext": trecvit.TAPNext(
            trecvit.TrackerConfig(
                blocks=trecvit.ModelConfig(**{**blocks, "temporal_mlp": True}),
                raster_px=16,
                readout_width=8,
            )
        ),
        "tapnext_matching": trecvit.TAPNext(
            trecvit.TrackerConfig(
                blocks=trecvit.ModelConfig(**{**blocks, "temporal_mlp": True}),
                raster_px=16,
                readout_width=8,
                norm_eps=1e-5,
                query_border="zeros",
                matching=True,
            )
        ),
        "readout_tracker": trecvit.ReadoutTracker(
            trecvit.ReadoutTrackerConfig(
                blocks=trecvit.ModelConfig(**{**blocks, "pooling": "cls"}),
                readout=trecvit.PointReadoutConfig(num_bases=2, width=8, depth=1, num_heads=2, mlp_width=8),
            )
        ),
    }
    for name, tracker in trackers.items():
        moved(tracker).save(folder / "models" / name)
        if name == "tapnext_matching":
            weights_by_formula(tracker, folder / "models" / name)
        with torch.no_grad():
            expected |= numbered(name, tracker(video, query_points_tyx))
            _, state = tracker.step(video[:, :2], tracker.init_state(query_points_tyx))
            state.save(folder / "states" / f"{name}.safetensors")
    encoder = trecvit.ModelConfig(**blocks)
    decoder = decoder_config(encoder, width=8, depth=1, num_heads=2, mlp_width=8)
    autoencoder = moved(
        MaskedAutoencoder(AutoencoderConfig(blocks=encoder, decoder=decoder), preprocessing=preprocessing)
    )
    autoencoder.save(folder / "models" / "autoencoder")
    visible = torch.tensor([[0, 3]])
    with torch.no_grad():
        expected |= {"visible": visible, "restored": autoencoder.restore(video, visible)}
    save_file({name: tensor.contiguous() for name, tensor in expected.items()}, folder / "expected.safetensors")


def weights_by_formula(model: torch.nn.Module, folder: Path) -> None:
    """Weights that names and shapes determine, as `matching` has 674 kB of them; the shapes are what is kept."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.sin(torch.arange(parameter.numel(), dtype=torch.float64)).view(parameter.shape))
    (folder / "model.safetensors").unlink()
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    (folder / "shapes.json").write_text(json.dumps(shapes) + "\n")


def exported(folder: Path) -> None:
    """The `lru` as OpenVINO's graph, which does not depend on the processor."""
    model = trecvit.load(folder / "models" / "lru")
    trecvit.export(model, folder / "exported", mode="openvino", frames=(2,))
    for path in folder.glob("exported/stream.*"):  # for programs without Python
        path.unlink()
    shutil.make_archive(str(folder / "exported"), "zip", folder / "exported")
    shutil.rmtree(folder / "exported")


def runs(folder: Path) -> None:
    """Runs stopped by Ctrl-C after 3 of 6 steps, with the losses of all 6."""
    for name, sections in RUNS.items():
        run = folder / "runs" / name
        run.mkdir(parents=True)
        (run / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, **sections}))
        losses: list[float] = []
        train(load_recipe(run / "recipe.yaml"), run / "whole", report=lambda line, to=losses: to.append(line.loss))
        shutil.rmtree(run / "whole")
        with suppress(Interrupted):
            train(load_recipe(run / "recipe.yaml"), run / "stopped", report=stop)
        shutil.rmtree(run / "stopped" / "tensorboard", ignore_errors=True)
        (run / "losses.json").write_text(json.dumps(losses) + "\n")


def stop(line: Progress) -> None:
    if line.step == 2:
        signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    torch.manual_seed(0)
    target = Path(sys.argv[1])
    (target / "states").mkdir()
    models(target)
    exported(target)
    runs(target)
