"""First weights: of a model trained before, of an image model as in the paper, or such that a small one soon learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from trecvit.baselines.baseline import Baseline
from trecvit.baselines.mae import VideoMaeAutoencoder
from trecvit.baselines.memorise import VivitMemoriser
from trecvit.config import Architecture, MemoriserConfig, Preprocessing
from trecvit.errors import CheckpointError, ConfigError
from trecvit.model.mae import MaskedAutoencoder
from trecvit.model.memorise import Memoriser
from trecvit.model.readout_tracker import ReadoutTracker
from trecvit.model.tracker import PointTracker
from trecvit.model.trecvit import TRecViT, VideoModel
from trecvit.pretrained import mismatch
from trecvit.train.feed import Batch, Feed
from trecvit.train.recipe import Recipe
from trecvit.weights.imagenet import initialise_from_vit
from trecvit.weights.load import build_untrained, load

_POSITIONS = ("tokenizer.positions", "tokenizer.time.positions", "vivit.embeddings.position_embeddings")

Trainable = VideoModel | Baseline
_BASELINES: dict[type, type[Baseline]] = {kind.config_class: kind for kind in (VideoMaeAutoencoder, VivitMemoriser)}

_HAVE_A_BACKBONE = (MaskedAutoencoder, Memoriser, ReadoutTracker)  # and something behind it that is no head
_FLOOR = 1e-3  # of a component's variance, pixels in [0,1]: what lies below is noise, and is not blown up


def fresh(
    config: Architecture,
    *,
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
) -> Trainable:
    """The model that a description is one of, with first weights: the package's own, or one to compare it with."""
    if (baseline := _BASELINES.get(type(config))) is not None:
        return baseline(config, preprocessing=preprocessing, provenance=provenance)
    return build_untrained(config, preprocessing=preprocessing, labels=labels, provenance=provenance)


def load_trained(
    config: Architecture, folder: str | Path, *, device: torch.device | str = "cpu"
) -> TRecViT | PointTracker | Memoriser | Baseline:
    """What a run of a model of this architecture has left in a folder."""
    if (baseline := _BASELINES.get(type(config))) is not None:
        return baseline.load(folder, device=device)
    return Memoriser.load(folder, device=device) if isinstance(config, MemoriserConfig) else load(folder, device=device)


def first_model(recipe: Recipe, feed: Feed[Batch]) -> tuple[Trainable, str]:
    """The model before the first update, made as the recipe's `start` says, and words about what it was made of.

    Raises:
        ConfigError: when the recipe's model and the data differ in their number of classes.
        CheckpointError: when weights to start from are not to be had, or do not fit.
    """
    start = recipe.start
    if recipe.model.num_classes != len(feed.labels):
        raise ConfigError(
            f"model.num_classes: the data have {len(feed.labels)} classes, got {recipe.model.num_classes}"
        )
    model = fresh(recipe.architecture, preprocessing=recipe.preprocessing, labels=feed.labels)
    if start.whiten_grain_px:
        assert isinstance(model, (VideoModel, VivitMemoriser)), "the recipe has refused it for a VideoMAE"
        whiten_patches(model, feed.examples(), grain_px=start.whiten_grain_px)
    scale_first_weights(model, convolutions=start.conv_scale, positions=start.positions_scale)
    if isinstance(model, Baseline):
        return model, "fresh weights"
    made_of = []
    if start.vit:
        made_of.append(str(initialise_from_vit(model, start.vit)))
    if start.weights:
        trained = load(start.weights)
        becomes_backbone = isinstance(model, _HAVE_A_BACKBONE) and isinstance(trained, TRecViT)
        if not (becomes_backbone or isinstance(trained, type(model))):
            expected, got = type(model).__name__, type(trained).__name__
            raise CheckpointError(f"{start.weights}: expected a {expected}, this is a {got}")
        made_of.append(go_on_from(model, trained, source=start.weights))
    return model, "\n".join(made_of) or "fresh weights"


def go_on_from(model: VideoModel, trained: VideoModel, *, source: str) -> str:
    """Takes over a trained model's weights, its head only if it has the same classes, and says so in words.

    An autoencoder takes the encoder's and no head, and begins with a fresh decoder.
    A tracker that has a readout takes over a backbone without any, and so does what returns frames of the past; a
    tracker that matches looks, one that does not.

    Raises:
        CheckpointError: when the models differ in anything but head and decoder.
    """
    weights = dict(trained.state_dict())
    own = model.state_dict()
    if isinstance(model, _HAVE_A_BACKBONE):
        weights = {name: weight for name, weight in weights.items() if not name.startswith("head.")}
    elif trained.labels != model.labels:
        weights = {name: weight for name, weight in weights.items() if not name.startswith("head.classifier.")}
    new = ("head.", "readout.", "matching.", "decoder.", "reader.")
    missing = [name for name in own if name not in weights and not name.startswith(new)]
    left_over = [name for name in weights if name not in own]
    other = [name for name in weights if name in own and weights[name].shape != own[name].shape]
    if reasons := mismatch(missing, left_over, other):
        raise CheckpointError(f"{source}: not a model of this architecture: {reasons}")
    model.load_state_dict(weights, strict=False)
    fresh = [name for name in own if name not in weights]
    return f"{source}: {len(weights)} tensors taken, left fresh: {', '.join(fresh) or 'none'}"


@torch.no_grad()
def whiten_patches(
    model: VideoModel | VivitMemoriser, videos: UInt8[Tensor, "B T 3 H W"], *, grain_px: int = 1
) -> None:
    """Sets the patch embedding so that the tokens of these videos have uncorrelated channels of equal size.

    Neighbouring pixels are so alike that a random embedding sees little but brightness, and motion moves what is left.
    The embedding becomes the principal components of the patches, each brought to variance one, randomly turned.

    Args:
        model: Whose embedding is set.
        videos: What it is going to see.
        grain_px: Side of the squares of pixels that are averaged first; divides the patch size. Detail that moves by
            more than half its own length from frame to frame tells nothing about direction, and is better left for
            training to find.
    """
    blocks = model.config if isinstance(model, VivitMemoriser) else model.tokenizer.config
    width = blocks.width
    frames = F.avg_pool2d(videos.flatten(0, 1).float() / 255.0, grain_px)
    side = blocks.patch_size // grain_px
    extent = 1 if isinstance(model, VivitMemoriser) else model.tokenizer.config.temporal_patch_size
    patches = frames.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    mean = patches.mean(dim=0)
    variances, directions = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    count = min(width, patches.shape[1])
    kept = directions.flip(1)[:, :count] / (variances.flip(0)[:count].clamp(min=0) + _FLOOR).sqrt()
    turned = kept @ torch.linalg.qr(torch.randn(width, count))[0].T  # [pixels, width]
    coarse = turned.T.reshape(width, 3, 1, side, side).expand(-1, -1, extent, -1, -1) / extent
    weight = coarse.repeat_interleave(grain_px, 3).repeat_interleave(grain_px, 4) / grain_px**2
    bias = -turned.T @ mean
    if isinstance(model, VivitMemoriser):
        model.embed_by(weight, bias)
        return
    model.tokenizer.embedding.weight.copy_(weight.flatten(1))
    model.tokenizer.embedding.bias.copy_(bias)


@torch.no_grad()
def scale_first_weights(model: Trainable, *, convolutions: float, positions: float) -> None:
    """Multiplies the initial temporal convolutions and positions, which the paper begins close to zero."""
    for name, parameter in model.named_parameters():
        if name.endswith("temporal.conv.weight"):
            parameter.mul_(convolutions)
        elif name in _POSITIONS:
            parameter.mul_(positions)
