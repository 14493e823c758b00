"""VideoMAE of Hugging Face transformers, the baseline of the masked autoencoder (paper, Table 5).

Its tokens are tubelets of several frames; its encoder attends to all visible tokens of a clip, its decoder to all
tokens. Masks, targets and loss are those of `trecvit.model.mae`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from paper.video_transformers import build_videomae, standardise
from trecvit.config import Preprocessing
from trecvit.errors import InputError
from trecvit.model.mae import Autoencoder, AutoencoderConfig, Clips, Restoration, hidden_patches
from trecvit.train.networks import OTHER_NETWORKS, OtherNetwork
from trecvit.train.tasks.mae import NETWORKS


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoMaeConfig(AutoencoderConfig):
    """Architecture of a `VideoMaeAutoencoder`.

    Of `blocks` and `decoder` only the sizes matter; the frames of a tubelet are their `temporal_patch_size` (VideoMAE:
    2).

    Attributes:
        num_frames: Frames of a clip, for which positions are stored.
    """

    num_frames: int

    def __post_init__(self) -> None:
        AutoencoderConfig.__post_init__(self)  # super() fails in a dataclass with slots
        tubelet = self.blocks.temporal_patch_size
        self._require_whole("num_frames")
        self._require(self.num_frames % tubelet == 0, "num_frames", f"a multiple of temporal_patch_size={tubelet}")


class VideoMaeAutoencoder(OtherNetwork, Autoencoder):
    """`autoencoder(video, visible)` restores masked patches, see `trecvit.model.mae.MaskedAutoencoder`.

    `network` is transformers' `VideoMAEForPreTraining`, whose loss is not used.
    """

    config: VideoMaeConfig
    config_class = VideoMaeConfig

    def __init__(
        self,
        config: VideoMaeConfig,
        *,
        preprocessing: Preprocessing | None = None,
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(config, preprocessing=preprocessing, provenance=provenance)
        self.network: Any = build_videomae(config.blocks, config.decoder, num_frames=config.num_frames)

    @property
    def blocks(self) -> nn.ModuleList:
        """The encoder's layers, then the decoder's."""
        return nn.ModuleList([*self.network.videomae.encoder.layer, *self.network.decoder.decoder_layers])

    @property
    def embedding(self) -> nn.Conv3d:
        """The embedding of tubelets."""
        projection: nn.Conv3d = self.network.videomae.embeddings.patch_embeddings.projection
        return projection

    def forward(self, video: Clips, visible: Int64[Tensor, "B K"]) -> Restoration:
        """Restore the masked patches in all frames.

        Args:
            video: uint8, or floating point in [0,1], of the configuration's size and length.
            visible: Indices of the visible patches, see `tube_masks`.

        Raises:
            InputError: for videos of another size or length.
        """
        blocks = self.config.blocks
        size = (self.config.num_frames, 3, *blocks.image_size)
        if tuple(video.shape[1:]) != size:
            raise InputError(f"expected videos [B,{','.join(map(str, size))}], got {tuple(video.shape)}")
        hidden = hidden_patches(visible, blocks.num_patches)
        num_rows = self.config.num_frames // blocks.temporal_patch_size
        masked = torch.ones(len(video), blocks.num_patches, dtype=torch.bool, device=video.device)
        masked = masked.scatter(1, visible, False).repeat(1, num_rows)
        pixels = standardise(video).to(self.embedding.weight.dtype)
        restored: Float[Tensor, "B TH pixels"] = self.network(pixels, bool_masked_pos=masked).logits
        return Restoration(restored.unflatten(1, (num_rows, hidden.shape[1])), hidden)


def _architecture(config: AutoencoderConfig, clips: Preprocessing) -> VideoMaeConfig:
    sizes = {entry.name: getattr(config, entry.name) for entry in fields(AutoencoderConfig)}
    return VideoMaeConfig(**sizes, num_frames=clips.num_frames)


OTHER_NETWORKS[VideoMaeConfig] = VideoMaeAutoencoder
NETWORKS["videomae"] = _architecture
