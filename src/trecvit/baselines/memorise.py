"""What a TRecViT is compared with in returning a frame of the past (paper, section 5.4 and appendix F): a ViViT.

It attends to all tokens of all frames, its tokens are averaged over time, and a 1 x 1 convolution makes pixels of them.
It cannot stream: every new frame is a whole clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from trecvit.baselines.baseline import Baseline
from trecvit.baselines.video_transformers import build_vivit
from trecvit.config import Preprocessing, VivitMemoriserConfig
from trecvit.errors import InputError
from trecvit.model.memorise import GREY, SPREAD


class VivitMemoriser(Baseline, tags=["video-memorisation"]):
    """`memoriser(video)` returns one frame of the past; see `trecvit.model.memorise.Memoriser`."""

    config: VivitMemoriserConfig
    config_class = VivitMemoriserConfig

    def __init__(
        self,
        config: VivitMemoriserConfig,
        *,
        preprocessing: Preprocessing | None = None,
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(config, preprocessing=preprocessing, provenance=provenance)
        sizes = {name: getattr(config, name) for name in ("width", "depth", "num_heads", "mlp_width")}
        self.vivit: Any = build_vivit(
            **sizes, patch_size=config.patch_size, image_size=config.image_size, num_frames=config.num_frames
        )
        self.reader = nn.Conv2d(config.width, 3 * config.patch_size**2, kernel_size=1)
        # As TRecViT's; transformers' own are zero, from which frames look alike at first.
        nn.init.normal_(self.vivit.embeddings.position_embeddings, std=config.width**-0.5)

    @property
    def blocks(self) -> nn.ModuleList:
        """Its layers."""
        layers: nn.ModuleList = self.vivit.layers
        return layers

    @property
    def embedding(self) -> nn.Conv3d:
        """What makes tokens of patches."""
        projection: nn.Conv3d = self.vivit.embeddings.patch_embeddings.projection
        return projection

    @torch.no_grad()
    def embed_by(self, weight: Float[Tensor, "D 3 1 side side"], bias: Float[Tensor, " D"]) -> None:
        """Sets the patch embedding to what these are for pixels in [0,1]."""
        self.embedding.weight.copy_(weight * GREY)
        assert self.embedding.bias is not None, "transformers' embedding has a bias"
        self.embedding.bias.copy_(bias + GREY * weight.flatten(1).sum(dim=1))

    def forward(self, video: Shaped[Tensor, "B T 3 height width"]) -> Float[Tensor, "B 3 height width"]:
        """The frame that is remembered of whole clips, of any number of frames.

        Args:
            video: uint8, or floating point in [0,1], of the size that the configuration says.

        Returns:
            float32, about [0,1] and not cut off there.

        Raises:
            InputError: for videos of another size.
        """
        size = (3, *self.config.image_size)
        if video.dim() != 5 or tuple(video.shape[2:]) != size or video.shape[1] < 1:
            raise InputError(
                f"expected a video [B,T,3,H,W] with T >= 1 of {size[1]}x{size[2]}, got {tuple(video.shape)}"
            )
        pixels = video.float() / 255.0 if video.dtype == torch.uint8 else video.float()
        pixels = (pixels.to(self.reader.weight.dtype) - GREY) / GREY  # ViViT's own input is from -1 to 1
        rows, columns = (side // self.config.patch_size for side in self.config.image_size)
        cls = self.vivit.embeddings.cls_token.expand(len(video), -1, -1)
        tokens = torch.cat([cls, self.embedding(pixels.transpose(1, 2)).flatten(2).transpose(1, 2)], dim=1)
        tokens = tokens + self.positions(video.shape[1])
        for layer in self.blocks:
            tokens = layer(tokens)
        tokens = self.vivit.layernorm(tokens)[:, 1:].unflatten(1, (video.shape[1], rows * columns)).mean(dim=1)
        patches = self.reader(tokens.transpose(1, 2).unflatten(2, (rows, columns)))
        return F.pixel_shuffle(patches.float() * SPREAD + GREY, self.config.patch_size)

    def positions(self, num_frames: int) -> Float[Tensor, "1 tokens D"]:
        """What is added to the class token and to the patches of so many frames.

        For another number of frames than there are positions for, each takes that of the nearest (paper, appendix F:
        cubic interpolation is worse).
        """
        stored: Tensor = self.vivit.embeddings.position_embeddings
        if num_frames == self.config.num_frames:
            return stored
        over_time = stored[:, 1:].unflatten(1, (self.config.num_frames, -1)).movedim(1, 3)  # [1, P, D, T]
        resized = F.interpolate(over_time.flatten(1, 2), size=num_frames, mode="nearest")
        resized = resized.unflatten(1, over_time.shape[1:3]).movedim(3, 1).flatten(1, 2)
        return torch.cat([stored[:, :1], resized], dim=1)
