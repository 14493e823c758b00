"""Video transformers with attention over time: Hugging Face transformers' classes with the paper's sizes.

Tubelets are of 1 x 16 x 16 pixels, by the paper's count of tokens (ViViT-L has 6,272 at 32 frames).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from trecvit.config import ModelConfig, Preprocessing, nearest
from trecvit.errors import CheckpointError, ConfigError, MissingPackageError
from trecvit.evaluate.features import Encoder

_Builder = Callable[[int, int, str], Any]  # image size, frames, kind of attention -> nn.Module

_BASE: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
# Normalisation of pixels in [0,1] for VideoMAE's published weights (transformers: VideoMAEImageProcessor).
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TEMPORAL_LAYERS = 4  # of the factorised encoder: ViViT (arXiv:2103.15691), section 4.2


class FactorisedEncoder(nn.Module):
    """ViViT's model 2: a ViT on each frame, then a small transformer over the frames' class tokens."""

    def __init__(self, sizes: dict[str, Any], image_size: int, num_frames: int, attention: str) -> None:
        super().__init__()
        from transformers import VivitConfig, VivitModel

        def vivit(**fields: Any) -> Any:
            config = VivitConfig(**{**sizes, "tubelet_size": [1, 16, 16], **fields}, attn_implementation=attention)
            return VivitModel(config, add_pooling_layer=False)

        self.spatial: Any = vivit(image_size=image_size, num_frames=1)
        self.temporal: Any = vivit(image_size=16, num_frames=num_frames, num_hidden_layers=_TEMPORAL_LAYERS)
        self.temporal.embeddings.patch_embeddings = nn.Identity()

    def forward(self, video: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B D"]:
        """The class token of the whole video."""
        batch_size, num_frames = video.shape[:2]
        frames = self.spatial(video.flatten(0, 1)[:, None]).last_hidden_state[:, 0]
        tokens = self.temporal.embeddings
        joined = torch.cat([tokens.cls_token.expand(batch_size, -1, -1), frames.unflatten(0, (-1, num_frames))], dim=1)
        joined = joined + tokens.position_embeddings
        for layer in self.temporal.layers:
            joined = layer(joined)
        cls: Tensor = self.temporal.layernorm(joined)[:, 0]
        return cls


def _vivit(sizes: dict[str, Any]) -> _Builder:
    def build(image_size: int, num_frames: int, attention: str) -> Any:
        from transformers import VivitConfig, VivitModel

        config = VivitConfig(
            **sizes,
            image_size=image_size,
            num_frames=num_frames,
            tubelet_size=[1, 16, 16],
            attn_implementation=attention,
        )
        return VivitModel(config, add_pooling_layer=False)

    return build


def _factorised_attention(image_size: int, num_frames: int, attention: str) -> Any:
    from transformers import TimesformerConfig, TimesformerModel

    return TimesformerModel(
        TimesformerConfig(**_LARGE, image_size=image_size, num_frames=num_frames, attn_implementation="eager")
    )


def _factorised_encoder(image_size: int, num_frames: int, attention: str) -> nn.Module:
    return FactorisedEncoder(_LARGE, image_size, num_frames, attention)


def _videomae(image_size: int, num_frames: int, attention: str) -> Any:
    from transformers import VideoMAEConfig, VideoMAEModel

    config = VideoMAEConfig(
        **_LARGE, image_size=image_size, num_frames=num_frames, tubelet_size=2, attn_implementation=attention
    )
    return VideoMAEModel(config)


def build_vivit(
    *,
    width: int,
    depth: int,
    num_heads: int,
    mlp_width: int,
    patch_size: int,
    image_size: tuple[int, int],
    num_frames: int,
) -> Any:
    """Build a randomly initialised `VivitModel` with one frame per patch and PyTorch's fused attention.

    Raises:
        MissingPackageError: transformers is not installed.
    """
    _require_transformers()
    from transformers import VivitConfig, VivitModel

    config = VivitConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=num_heads,
        intermediate_size=mlp_width,
        image_size=list(image_size),
        num_frames=num_frames,
        tubelet_size=[1, patch_size, patch_size],
        attn_implementation="sdpa",
    )
    return VivitModel(config, add_pooling_layer=False)


FACTORISED_ENCODER = "ViViT-L, factorised encoder"
_BUILDERS: dict[str, _Builder] = {
    "ViViT-L": _vivit(_LARGE),
    "ViViT-B": _vivit(_BASE),
    "ViViT-L, factorised self-attention": _factorised_attention,
    FACTORISED_ENCODER: _factorised_encoder,
    "VideoMAE-L": _videomae,
}
NAMES = tuple(_BUILDERS)


def build_baseline(name: str, *, image_size: int, num_frames: int, fused: bool) -> nn.Module:
    """Build a randomly initialised model that takes video [B,T,3,H,W].

    Args:
        name: One of `NAMES`. "ViViT-L, factorised self-attention" is TimeSformer with divided attention, in ViViT-L's
            size; in transformers it has materialised attention only, with small maps. "VideoMAE-L" is the
            encoder on all tokens, tubelets of 2 frames as published.
        image_size: Side in pixels.
        num_frames: Frames T.
        fused: PyTorch's fused attention instead of materialised maps.

    Raises:
        ConfigError: for another name.
        MissingPackageError: transformers is not installed.
    """
    if name not in _BUILDERS:
        raise ConfigError(f"expected one of {', '.join(NAMES)}, got {name!r}{nearest(name, NAMES)}")
    _require_transformers()
    model: nn.Module = _BUILDERS[name](image_size, num_frames, "sdpa" if fused else "eager")
    return model


def load_videomae(source: str | Path) -> Any:
    """Load the `VideoMAEModel` of a folder written by transformers, also of a pre-training or classification model.

    Raises:
        CheckpointError: when the folder has none.
        MissingPackageError: transformers is not installed.
    """
    _require_transformers()
    from transformers import VideoMAEModel

    if not Path(source).is_dir():
        raise CheckpointError(f"{source}: expected a folder with transformers' config.json and weights of a VideoMAE")
    try:
        model, info = VideoMAEModel.from_pretrained(source, local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as exc:
        raise CheckpointError(f"{source}: expected a VideoMAE as transformers saves it: {exc}") from exc
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(f"{source}: not a VideoMAE's weights; {len(missing)} are missing, such as {missing[0]}")
    return model.eval()


def build_videomae(blocks: ModelConfig, decoder: ModelConfig, *, num_frames: int) -> Any:
    """Build a randomly initialised `VideoMAEForPreTraining` with PyTorch's fused attention.

    Args:
        blocks: Sizes of the encoder and of the clips.
        decoder: Sizes of the decoder.
        num_frames: Frames of a clip.

    Raises:
        MissingPackageError: transformers is not installed.
    """
    _require_transformers()
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    sizes = VideoMAEConfig(
        hidden_size=blocks.width,
        num_hidden_layers=blocks.depth,
        num_attention_heads=blocks.num_heads,
        intermediate_size=blocks.mlp_width,
        decoder_hidden_size=decoder.width,
        decoder_num_hidden_layers=decoder.depth,
        decoder_num_attention_heads=decoder.num_heads,
        decoder_intermediate_size=decoder.mlp_width,
        image_size=list(blocks.image_size),
        patch_size=blocks.patch_size,
        num_frames=num_frames,
        tubelet_size=blocks.temporal_patch_size,
        use_mean_pooling=False,  # as in its published pre-trained weights: the encoder ends with a norm
        attn_implementation="sdpa",
    )
    return VideoMAEForPreTraining(sizes)


def standardise(video: Shaped[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T 3 H W"]:
    """Normalise pixels, uint8 or in [0,1], for VideoMAE's published weights."""
    pixels = video.float() / 255.0 if video.dtype == torch.uint8 else video.float()
    mean, deviation = (torch.tensor(value, device=video.device).view(3, 1, 1) for value in (_MEAN, _DEVIATION))
    return (pixels - mean) / deviation


def fresh_videomae(model: Any, seed: int) -> Any:
    """Copy the architecture with random initial weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return type(model)(model.config).to(model.device).eval()


def videomae_encoder(model: Any, name: str, *, frame_stride: int = 4, frame_rate_fps: float | None = None) -> Encoder:
    """Wrap a `VideoMAEModel` on all tokens of a clip for probes.

    Features are transformers' `last_hidden_state`, without the last norm if the configuration has `use_mean_pooling`:
    transformers then applies it after the pooling.

    Args:
        model: From `load_videomae` or `fresh_videomae`.
        name: The user's name for it.
        frame_stride: Step between two frames of a clip; VideoMAE's on K400 is 4.
        frame_rate_fps: See `Preprocessing`.
    """
    network = copy.deepcopy(model).eval().requires_grad_(False)
    config = network.config

    def features(video: Tensor) -> Tensor:
        pixels = standardise(video.to(network.device))
        # Tokens are ordered by time first.
        num_rows = config.num_frames // config.tubelet_size
        tokens: Tensor = network(pixels).last_hidden_state.unflatten(1, (num_rows, -1))
        return tokens

    preprocessing = Preprocessing(
        image_size=config.image_size,
        num_frames=config.num_frames,
        frame_stride=frame_stride,
        frame_rate_fps=frame_rate_fps,
    )
    return Encoder(name, network, {"architecture": "VideoMAE", **_sizes(config)}, preprocessing, features)


def load_videomae_encoders(
    folder: Path, frame_stride: int, device: torch.device | str
) -> tuple[Encoder, Callable[[int], Encoder]]:
    """Load a VideoMAE as an encoder; also return a function for the same with the random weights of a seed.

    Raises:
        CheckpointError: when the folder has none.
        MissingPackageError: transformers is not installed.
    """
    network = load_videomae(folder).to(device)

    def fresh(seed: int) -> Encoder:
        return videomae_encoder(fresh_videomae(network, seed), f"seed {seed}", frame_stride=frame_stride)

    return videomae_encoder(network, str(folder), frame_stride=frame_stride), fresh


def _sizes(config: Any) -> dict[str, Any]:
    names = (*_BASE, "image_size", "patch_size", "num_frames", "tubelet_size", "use_mean_pooling")
    return {name: getattr(config, name) for name in names}


def _require_transformers() -> None:
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("transformers", needed_for="the models to compare with", extra="study") from error
