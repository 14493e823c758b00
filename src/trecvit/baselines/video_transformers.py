"""Video transformers that attend over time: Hugging Face transformers' own classes, with the paper's sizes.

One frame per patch, as the paper counts (its ViViT-L has 6,272 tokens at 32 frames): tubelets of 1 x 16 x 16 pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from trecvit.config import Preprocessing, nearest
from trecvit.errors import CheckpointError, ConfigError, MissingPackageError
from trecvit.evaluate.features import Encoder
from trecvit.model.mae import AutoencoderConfig

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
# What VideoMAE's published weights expect of pixels in [0,1] (transformers: VideoMAEImageProcessor).
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_TEMPORAL_LAYERS = 4  # of the factorised encoder: ViViT (arXiv:2103.15691), section 4.2


class FactorisedEncoder(nn.Module):
    """ViViT's model 2: a ViT on every frame by itself, then a small transformer over the frames' class tokens."""

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
    """A `VivitModel` of any size with fresh weights, one frame per patch, PyTorch's fused attention.

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
    """A model with fresh weights that takes video [B,T,3,H,W].

    Args:
        name: One of `NAMES`. "ViViT-L, factorised self-attention" is TimeSformer with divided attention, in ViViT-L's
            size; transformers has it with materialised attention only, whose maps are small. "VideoMAE-L" is the
            encoder on all tokens, tubelets of 2 frames as published.
        image_size: Side in pixels.
        num_frames: Frames T.
        fused: PyTorch's fused attention instead of materialised maps.

    Raises:
        ConfigError: For another name.
        MissingPackageError: transformers is not installed.
    """
    if name not in _BUILDERS:
        raise ConfigError(f"expected one of {', '.join(NAMES)}, got {name!r}{nearest(name, NAMES)}")
    _require_transformers()
    model: nn.Module = _BUILDERS[name](image_size, num_frames, "sdpa" if fused else "eager")
    return model


def load_videomae(source: str | Path) -> Any:
    """The `VideoMAEModel` of a folder that transformers has written, also of a pre-training or classifying model.

    Raises:
        CheckpointError: When there is none.
        MissingPackageError: transformers is not installed.
    """
    _require_transformers()
    from transformers import VideoMAEModel

    if not Path(source).is_dir():
        raise CheckpointError(f"{source}: expected a folder with transformers' config.json and weights of a VideoMAE")
    try:
        model, told = VideoMAEModel.from_pretrained(source, local_files_only=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as exc:
        raise CheckpointError(f"{source}: expected a VideoMAE as transformers saves it: {exc}") from exc
    if missing := sorted(told["missing_keys"]):
        raise CheckpointError(f"{source}: not a VideoMAE's weights; {len(missing)} are missing, such as {missing[0]}")
    return model.eval()


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoMaeConfig(AutoencoderConfig):
    """Architecture of the VideoMAE that an `AutoencoderConfig` is compared with: attention over all tokens of a clip.

    Of `blocks` and `decoder` it has the sizes and nothing else, such as a temporal part; the frames of a tubelet are
    their `temporal_patch_size` (VideoMAE: 2).

    Attributes:
        num_frames: Frames of a clip, for which positions are stored.
    """

    num_frames: int

    def __post_init__(self) -> None:
        AutoencoderConfig.__post_init__(self)  # super() does not know a class with slots
        tubelet = self.blocks.temporal_patch_size
        self._require_whole("num_frames")
        self._require(self.num_frames % tubelet == 0, "num_frames", f"a multiple of temporal_patch_size={tubelet}")


def build_videomae(config: VideoMaeConfig) -> Any:
    """A `VideoMAEForPreTraining` with fresh weights and PyTorch's fused attention.

    Raises:
        MissingPackageError: transformers is not installed.
    """
    _require_transformers()
    from transformers import VideoMAEConfig, VideoMAEForPreTraining

    blocks, decoder = config.blocks, config.decoder
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
        num_frames=config.num_frames,
        tubelet_size=blocks.temporal_patch_size,
        use_mean_pooling=False,  # as its published pre-trained weights have it: a norm ends the encoder
        attn_implementation="sdpa",
    )
    return VideoMAEForPreTraining(sizes)


def standardise(video: Shaped[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T 3 H W"]:
    """Pixels, uint8 or in [0,1], as VideoMAE's published weights expect them."""
    pixels = video.float() / 255.0 if video.dtype == torch.uint8 else video.float()
    mean, deviation = (torch.tensor(value, device=video.device).view(3, 1, 1) for value in (_MEAN, _DEVIATION))
    return (pixels - mean) / deviation


def fresh_videomae(model: Any, seed: int) -> Any:
    """The same architecture with first weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return type(model)(model.config).to(model.device).eval()


def videomae_encoder(model: Any, name: str, *, frame_stride: int = 4, frame_rate_fps: float | None = None) -> Encoder:
    """A `VideoMAEModel` on all tokens of a clip, to be probed as a TRecViT is.

    Features are what transformers calls `last_hidden_state`: without a last norm where the configuration says
    `use_mean_pooling`, as transformers then puts it behind the pooling.

    Args:
        model: From `load_videomae` or `fresh_videomae`.
        name: As the user named it.
        frame_stride: Every how many frames one is taken; VideoMAE's own on K400 is 4.
        frame_rate_fps: See `Preprocessing`.
    """
    network = copy.deepcopy(model).eval().requires_grad_(False)
    config = network.config

    def features(video: Tensor) -> Tensor:
        pixels = standardise(video.to(network.device))
        # Tubelets lie frame by frame.
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


def _sizes(config: Any) -> dict[str, Any]:
    names = (*_BASE, "image_size", "patch_size", "num_frames", "tubelet_size", "use_mean_pooling")
    return {name: getattr(config, name) for name in names}


def _require_transformers() -> None:
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("transformers", needed_for="the models to compare with", extra="study") from error
