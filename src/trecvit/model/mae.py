"""Masked autoencoding (paper, section 4.1): hide most tubes of a clip, encode the rest, reconstruct the hidden ones.

A tube is one patch of the picture through all frames: one temporal recurrence. The encoder is a TRecViT's tokenizer,
blocks and last norm on fewer tokens: mixing over time treats tubes separately and mixing over space treats frames as
sets, so it takes any subset of the tubes, each with its position, at no cost for hidden ones.

B clips · F frames · T temporal patches of `temporal_patch_size` frames · P patches per frame, K visible and H hidden ·
D width of the encoder

Sources: "paper" arXiv:2412.14294; "VideoMAE", whose recipe it follows, github.com/MCG-NJU/VideoMAE at 14ef8d8.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from trecvit.config import BlocksConfig, ModelConfig, Preprocessing
from trecvit.errors import InputError
from trecvit.model.pixels import unit_pixels
from trecvit.model.state import empty_layers
from trecvit.model.trecvit import (
    NORM_EPS,
    Block,
    TRecViT,
    VideoModel,
    frames_of,
    init_lecun,
    patches_of,
    sincos_positions,
    through_blocks,
)
from trecvit.pretrained import WEIGHTS_FILE, Dtype, Pretrained, build, read_tensors
from trecvit.quantised import quantise

DECODER_FOLDER = "decoder"  # within the folder of the encoder
_DECODER = f"{DECODER_FOLDER}."

Clips = Shaped[Tensor, "B F 3 height width"]  # F = T * temporal_patch_size

_MIN_DEVIATION = 1e-6  # VideoMAE: added to a patch's deviation
_GREY, _SPREAD = 0.5, 0.25  # approximate mean and deviation of pixels in [0,1], for targets of unit scale


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderConfig(BlocksConfig):
    """Architecture of a masked autoencoder: a TRecViT over the visible tubes of a clip, a decoder for the hidden ones.

    Attributes:
        blocks: Tokenizer and blocks of the encoder, without a head.
        decoder: Blocks of the decoder, see `decoder_config`. Patches are the encoder's, positions the fixed ones.
        mask_ratio: Share of the tubes that are hidden (paper, section 4.1: 0.9 does best).
        normalised_targets: Whether each target patch is brought to mean 0 and deviation 1 (paper), or left as it is. In
            a small picture hidden patches share the colour of their surroundings, which is soon learnt; normalised
            patches have lost it.
    """

    blocks: ModelConfig
    decoder: ModelConfig
    mask_ratio: float = 0.9
    normalised_targets: bool = True

    def __post_init__(self) -> None:
        self._require_blocks(num_classes=0)
        self._require(isinstance(self.decoder, ModelConfig), "decoder", "a ModelConfig")
        rule = "patch_size >= 2, patches of one pixel have no contrast"
        self._require(self.blocks.patch_size >= 2, "blocks", rule)
        for name, value in _decoder_must_have(self.blocks).items():
            self._require(getattr(self.decoder, name) == value, "decoder", f"{name}={value!r}")
        self._require(0.0 <= self.mask_ratio < 1.0, "mask_ratio", "a share of 0 up to but not 1")


def decoder_config(blocks: ModelConfig, **fields: Any) -> ModelConfig:
    """Return the configuration of a decoder for an encoder of these blocks, by default as large as VideoMAE's base one.

    The paper does not describe its decoder. VideoMAE's (github.com/MCG-NJU/VideoMAE at 14ef8d8) has 4 blocks of width
    384 with 6 heads, which attend to all tokens of all frames. These are TRecViT's own blocks, so that a hidden tube
    too remembers its past, or with `temporal_mixer="none"` blocks that see single frames.

    Args:
        blocks: The encoder's.
        fields: Fields of `ModelConfig` to override.
    """
    size = {"width": 384, "depth": 4, "num_heads": 6, "mlp_width": 1536}
    return ModelConfig().replace(**{**size, **_decoder_must_have(blocks), **fields})


def _decoder_must_have(blocks: ModelConfig) -> dict[str, Any]:
    same = {name: getattr(blocks, name) for name in ("patch_size", "temporal_patch_size", "image_size")}
    return {**same, "positions": "sincos2d", "pooling": "mean", "num_classes": 0}


def tube_masks(num_clips: int, num_patches: int, mask_ratio: float, generator: torch.Generator) -> Int64[Tensor, "B K"]:
    """Draw the visible patches of each clip, the same in all its frames: one random 2-D mask per clip.

    Args:
        num_clips: B.
        num_patches: Patches P of a frame.
        mask_ratio: Hidden share, rounded down to whole patches (VideoMAE); at least one patch stays visible.
        generator: On the CPU.

    Returns:
        Their indices in rising order.
    """
    num_visible = max(num_patches - int(mask_ratio * num_patches), 1)
    return torch.rand(num_clips, num_patches, generator=generator).argsort(dim=1)[:, :num_visible].sort(dim=1).values


def hidden_patches(visible: Int64[Tensor, "B K"], num_patches: int) -> Int64[Tensor, "B H"]:
    """Return the indices of all other patches, in rising order."""
    is_visible = torch.zeros(len(visible), num_patches, dtype=torch.int8, device=visible.device)
    is_visible = is_visible.scatter(1, visible, torch.ones_like(visible, dtype=torch.int8))
    return is_visible.argsort(dim=1, stable=True)[:, : num_patches - visible.shape[1]]


class Targets(NamedTuple):
    """Targets of the hidden patches; pixels = normalised * deviation + mean.

    Attributes:
        normalised: Patches with mean 0 and deviation 1 in each colour.
        mean: Of each patch and colour, for pixels in [0,1]; without normalisation mid-grey.
        deviation: Likewise; without normalisation a quarter.
    """

    normalised: Float[Tensor, "B T H pixels"]
    mean: Float[Tensor, "B T H pixels"]
    deviation: Float[Tensor, "B T H pixels"]


def targets(video: Clips, hidden: Int64[Tensor, "B H"], config: AutoencoderConfig) -> Targets:
    """Return the hidden patches of uint8 or [0,1] videos, float32, each normalised (VideoMAE's normalised targets) if
    `config.normalised_targets`."""
    patches = patches_of(unit_pixels(video), config.blocks).take_along_dim(hidden[:, None, :, None], dim=2)
    if not config.normalised_targets:
        mean, deviation = torch.full_like(patches, _GREY), torch.full_like(patches, _SPREAD)
        return Targets((patches - mean) / deviation, mean, deviation)
    colours = patches.unflatten(3, (3, -1))  # [B, T, H, 3, pixels/3]
    mean = colours.mean(dim=4, keepdim=True)
    # Not std(), which warns without hidden patches.
    variance = (colours - mean).square().sum(dim=4, keepdim=True) / (colours.shape[4] - 1)
    deviation = (variance.sqrt() + _MIN_DEVIATION).expand_as(colours).flatten(3)
    mean = mean.expand_as(colours).flatten(3)
    return Targets((patches - mean) / deviation, mean, deviation)


class Restoration(NamedTuple):
    """An autoencoder's reconstruction of the hidden patches.

    Attributes:
        normalised: Prediction of `Targets.normalised`.
        hidden: Indices of these patches.
    """

    normalised: Float[Tensor, "B T H pixels"]
    hidden: Int64[Tensor, "B H"]


class Decoder(nn.Module):
    """Visible tokens, and mask tokens for the hidden patches -> blocks -> pixels of the hidden patches."""

    def __init__(self, config: ModelConfig, encoder_width: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Linear(encoder_width, config.width, bias=False)  # VideoMAE: encoder_to_decoder
        self.mask = nn.Parameter(torch.zeros(config.width))
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.out = nn.Linear(config.width, 3 * config.temporal_patch_size * config.patch_size**2)
        nn.init.xavier_uniform_(self.embedding.weight)
        nn.init.trunc_normal_(self.mask, std=0.02, a=-0.02, b=0.02)  # VideoMAE
        init_lecun(self.out)

    def forward(
        self,
        features: Float[Tensor, "B T K D"],
        visible: Int64[Tensor, "B K"],
        hidden: Int64[Tensor, "B H"],
        grid: tuple[int, int],
        *,
        recompute: bool = False,
    ) -> Float[Tensor, "B T H pixels"]:
        """Reconstruct the hidden patches of all frames.

        Args:
            features: The encoder's features of the visible patches.
            visible: Indices of the visible patches.
            hidden: Indices of the hidden patches.
            grid: Rows and columns of patches in a frame.
            recompute: See `through_blocks`.
        """
        positions = sincos_positions(*grid, self.config.width, device=self.mask.device).to(self.mask)
        visible_tokens = self.embedding(features) + positions[visible][:, None]
        mask_tokens = (self.mask + positions[hidden])[:, None].expand(-1, visible_tokens.shape[1], -1, -1)
        # Visible first: blocks are independent of the order, and the outputs needed are then contiguous.
        tokens = torch.cat([visible_tokens, mask_tokens.to(visible_tokens.dtype)], dim=2)
        batch_size, num_tokens = tokens.shape[0], tokens.shape[2]
        layers = empty_layers(self.config, batch_size, num_tokens, device=tokens.device, dtype=self.mask.dtype)
        fresh = torch.ones(batch_size, dtype=torch.bool, device=tokens.device)
        tokens, _ = through_blocks(self.blocks, tokens, layers, fresh, recompute=recompute)
        pixels: Tensor = self.out(self.norm(tokens[:, :, visible.shape[1] :]))
        return pixels


class Autoencoder(Pretrained, tags=["masked-autoencoding"]):
    """Base of autoencoders: called with a video and the indices of its visible patches, they return a `Restoration`."""

    config: AutoencoderConfig

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Device of the weights."""

    @torch.no_grad()
    def restore(self, video: Clips, visible: Int64[Tensor, "B K"]) -> Float[Tensor, "B F 3 height width"]:
        """Return the videos with their hidden patches reconstructed, in [0,1], float32.

        Normalised targets lack mean and contrast; the true ones are used, as in VideoMAE's pictures.
        """
        normalised, hidden = self(video, visible)
        true = targets(video, hidden, self.config)
        patches = (normalised.float() * true.deviation + true.mean).clamp(0.0, 1.0)
        return self.with_patches(video, hidden, patches)

    def with_patches(
        self, video: Clips, indices: Int64[Tensor, "B H"], patches: Shaped[Tensor, "B T H pixels"]
    ) -> Float[Tensor, "B F 3 height width"]:
        """Return the videos in [0,1], float32, with some patches replaced.

        Args:
            video: uint8, or floating point in [0,1].
            indices: Indices of the patches.
            patches: Their pixels in [0,1].
        """
        whole = patches_of(unit_pixels(video), self.config.blocks)
        index = indices[:, None, :, None].expand_as(patches)  # [B, T, H, pixels]
        whole = whole.scatter(2, index, patches)
        return frames_of(whole, self.config.blocks, (video.shape[3], video.shape[4]))


class MaskedAutoencoder(VideoModel, Autoencoder):
    """`autoencoder(video, visible)` reconstructs the hidden patches of clips; `save` saves the encoder as a TRecViT.

    The decoder is saved in a subfolder, so that `MaskedAutoencoder.load` can load both.
    """

    config: AutoencoderConfig
    config_class = AutoencoderConfig
    _hub_files = (*Pretrained._hub_files, *(f"{DECODER_FOLDER}/{name}" for name in Pretrained._hub_files))

    def __init__(
        self,
        config: AutoencoderConfig,
        *,
        preprocessing: Preprocessing | None = None,
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(config, config.blocks, preprocessing=preprocessing, provenance=provenance)
        self.decoder = Decoder(config.decoder, config.blocks.width)

    def forward(self, video: Clips, visible: Int64[Tensor, "B K"]) -> Restoration:
        """Reconstruct the hidden patches of all frames.

        Args:
            video: uint8, or floating point in [0,1].
            visible: Indices of the visible patches, see `tube_masks`. No others are used.

        Raises:
            InputError: for invalid shapes, dtypes or values of the video.
        """
        self._check_frames(video)
        side = self.config.blocks.patch_size
        grid = (video.shape[3] // side, video.shape[4] // side)
        hidden = hidden_patches(visible, grid[0] * grid[1])
        features = self.encode(video, visible)
        recompute = self.recompute == "blocks"
        return Restoration(self.decoder(features, visible, hidden, grid, recompute=recompute), hidden)

    def encode(self, video: Clips, visible: Int64[Tensor, "B K"]) -> Float[Tensor, "B T K D"]:
        """Return the encoder's features of the visible patches, without a class token, which it processes with them."""
        blocks = self.config.blocks
        if video.shape[1] % blocks.temporal_patch_size:
            raise InputError(
                f"expected a number of frames that temporal_patch_size={blocks.temporal_patch_size} divides, "
                f"got {video.shape[1]}"
            )
        tokens = self.tokenizer(self._pixels(video), visible)
        batch_size, num_tokens = tokens.shape[0], tokens.shape[2]
        layers = empty_layers(blocks, batch_size, num_tokens, device=self.device, dtype=self.dtype)
        fresh = torch.ones(batch_size, dtype=torch.bool, device=self.device)
        tokens, _ = self._through_blocks(tokens, layers, fresh)
        features: Tensor = self.norm(tokens[:, :, num_tokens - visible.shape[1] :])
        return features

    def save(self, folder: str | Path, *, int8_step: float = 0.0) -> Path:
        """Write the encoder as a TRecViT without a head, and the decoder into a subfolder; see `Pretrained.save`."""
        folder, weights = Path(folder), self.state_dict()
        self._check_can_be_loaded(weights, folder)
        encoder = {name: tensor for name, tensor in weights.items() if not name.startswith(_DECODER)}
        preprocessing, provenance = self.preprocessing, self.provenance
        build(
            lambda: TRecViT(self.config.blocks, preprocessing=preprocessing, provenance=provenance),
            encoder,
            source="the encoder's weights",
            device=self.device,
            dtype="auto",
        ).save(folder, int8_step=int8_step)
        decoder = {name: weights[name] for name in weights if name not in encoder}
        self._save(folder / DECODER_FOLDER, quantise(decoder, step=int8_step) if int8_step else decoder)
        return folder

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device | str = "cpu", dtype: Dtype = None) -> MaskedAutoencoder:
        """Load a folder that `save` wrote, see `Pretrained.load`."""
        return super().load(Path(folder) / DECODER_FOLDER, device=device, dtype=dtype)

    @classmethod
    def _read_weights(cls, folder: Path) -> dict[str, Tensor]:
        return {**read_tensors(folder.parent / WEIGHTS_FILE), **read_tensors(folder / WEIGHTS_FILE)}
