"""What a TRecViT is compared with as a masked autoencoder (paper, Table 5): VideoMAE, as transformers has it.

Its tokens are tubelets of several frames, its attention is over all visible tokens of a clip, its decoder's over all of
its tokens. Masks, targets and loss are those of `trecvit.model.mae`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from trecvit.baselines.baseline import Baseline
from trecvit.baselines.video_transformers import VideoMaeConfig, build_videomae, standardise
from trecvit.config import Preprocessing
from trecvit.errors import InputError
from trecvit.model.mae import Autoencoder, Clips, Restoration, hidden_patches


class VideoMaeAutoencoder(Baseline, Autoencoder):
    """`autoencoder(video, visible)` restores what is hidden of clips; see `trecvit.model.mae.MaskedAutoencoder`.

    `network` is transformers' `VideoMAEForPreTraining`, whose own loss plays no part.
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
        self.network: Any = build_videomae(config)

    @property
    def blocks(self) -> nn.ModuleList:
        """The encoder's layers, then the decoder's."""
        return nn.ModuleList([*self.network.videomae.encoder.layer, *self.network.decoder.decoder_layers])

    @property
    def embedding(self) -> nn.Conv3d:
        """What makes tokens of tubelets."""
        projection: nn.Conv3d = self.network.videomae.embeddings.patch_embeddings.projection
        return projection

    def forward(self, video: Clips, visible: Int64[Tensor, "B K"]) -> Restoration:
        """Restores the patches that are not visible, in all frames.

        Args:
            video: uint8, or floating point in [0,1], of the size and length that the configuration says.
            visible: Numbers of the patches that are, see `tube_masks`. Others are not looked at.

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
