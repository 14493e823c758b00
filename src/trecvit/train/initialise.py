"""Initial weights: of a trained model, of an image model as in the paper, or such that a small model learns soon."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from trecvit.errors import CheckpointError, ConfigError
from trecvit.model.mae import MaskedAutoencoder
from trecvit.model.readout_tracker import ReadoutTracker
from trecvit.model.trecvit import TRecViT, VideoModel
from trecvit.pretrained import mismatch
from trecvit.train.feed import Batch, Feed
from trecvit.train.networks import OtherNetwork, Trainable, untrained
from trecvit.train.recipe import Recipe
from trecvit.weights.imagenet import initialise_from_vit
from trecvit.weights.load import load

_POSITIONS = ("tokenizer.positions", "tokenizer.time.positions", "vivit.embeddings.position_embeddings")

BACKBONE_USERS: list[type[VideoModel]] = [MaskedAutoencoder, ReadoutTracker]
"""Models that can start from a classification model's weights, without its head."""

_FLOOR = 1e-3  # of a component's variance, pixels in [0,1]: smaller ones are noise, which is not amplified


def initial_model(recipe: Recipe, feed: Feed[Batch]) -> tuple[Trainable, str]:
    """Build the model before the first update from the recipe's `start`; also describe where its weights are from.

    Raises:
        ConfigError: when the recipe's model and the data differ in their number of classes.
        CheckpointError: when weights to start from are missing or do not fit.
    """
    start = recipe.start
    if recipe.model.num_classes != len(feed.labels):
        raise ConfigError(
            f"model.num_classes: the data have {len(feed.labels)} classes, got {recipe.model.num_classes}"
        )
    model = untrained(recipe.architecture, preprocessing=recipe.preprocessing, labels=feed.labels)
    if start.whiten_grain_px:
        whiten_patches(model, feed.examples(), grain_px=start.whiten_grain_px)
    scale_initial_weights(
        model, convolutions=start.conv_scale, temporal=start.temporal_scale, positions=start.positions_scale
    )
    if isinstance(model, OtherNetwork):
        return model, "random weights"
    sources = []
    if start.vit:
        sources.append(str(initialise_from_vit(model, start.vit)))
    if start.weights:
        trained = load(start.weights)
        becomes_backbone = isinstance(model, tuple(BACKBONE_USERS)) and isinstance(trained, TRecViT)
        if not (becomes_backbone or isinstance(trained, type(model))):
            expected, got = type(model).__name__, type(trained).__name__
            raise CheckpointError(f"{start.weights}: expected a {expected}, got a {got}")
        sources.append(load_weights_from(model, trained, source=start.weights))
    return model, "\n".join(sources) or "random weights"


def load_weights_from(model: VideoModel, trained: VideoModel, *, source: str) -> str:
    """Copy a trained model's weights, its classifier only for the same classes; describe what was copied.

    The decoder of an autoencoder, a tracker's readout, and a tracker's matching part stay randomly initialised if the
    trained model has none.

    Raises:
        CheckpointError: when the models differ in other parts.
    """
    weights = dict(trained.state_dict())
    own = model.state_dict()
    if isinstance(model, tuple(BACKBONE_USERS)):
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
    random = [name for name in own if name not in weights]
    return f"{source}: {len(weights)} tensors taken, randomly initialised: {', '.join(random) or 'none'}"


@torch.no_grad()
def whiten_patches(model: Trainable, videos: UInt8[Tensor, "B T 3 H W"], *, grain_px: int = 1) -> None:
    """Set the patch embedding so that the tokens of these videos have uncorrelated channels of equal variance.

    Neighbouring pixels are so similar that the channels of a random embedding are mostly brightness, while motion is
    in the differences. The embedding becomes the principal components of the patches, scaled to variance 1, in a
    random rotation.

    Args:
        model: Model to change.
        videos: Examples of the training clips.
        grain_px: Side of the squares of pixels that are averaged first; divides the patch size. Details that move by
            more than half their length between frames do not show the direction; training can find them.
    """
    if isinstance(model, OtherNetwork):
        width, _, extent, patch_size, _ = model.embedding.weight.shape
    else:
        blocks = model.tokenizer.config
        width, extent, patch_size = blocks.width, blocks.temporal_patch_size, blocks.patch_size
    frames = F.avg_pool2d(videos.flatten(0, 1).float() / 255.0, grain_px)
    side = patch_size // grain_px
    patches = frames.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
    mean = patches.mean(dim=0)
    variances, directions = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
    count = min(width, patches.shape[1])
    kept = directions.flip(1)[:, :count] / (variances.flip(0)[:count].clamp(min=0) + _FLOOR).sqrt()
    turned = kept @ torch.linalg.qr(torch.randn(width, count))[0].T  # [pixels, width]
    coarse = turned.T.reshape(width, 3, 1, side, side).expand(-1, -1, extent, -1, -1) / extent
    weight = coarse.repeat_interleave(grain_px, 3).repeat_interleave(grain_px, 4) / grain_px**2
    bias = -turned.T @ mean
    if isinstance(model, OtherNetwork):
        model.set_embedding(weight, bias)
        return
    model.tokenizer.embedding.weight.copy_(weight.flatten(1))
    model.tokenizer.embedding.bias.copy_(bias)


@torch.no_grad()
def scale_initial_weights(model: Trainable, *, convolutions: float, positions: float, temporal: float = 1.0) -> None:
    """Multiply the initial temporal convolutions and positions, close to zero in the paper, and temporal outputs."""
    for name, parameter in model.named_parameters():
        if name.endswith("temporal.conv.weight"):
            parameter.mul_(convolutions)
        elif name.endswith("temporal.linear_out.weight"):
            parameter.mul_(temporal)
        elif name in _POSITIONS:
            parameter.mul_(positions)
