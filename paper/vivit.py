"""ViViT for long-video memorisation (paper, section 5.4 and appendix F), the baseline of `Memoriser`.

It attends to all tokens of all frames; the mean of its tokens over time becomes pixels by a 1 x 1 convolution. It
cannot stream: every new frame needs the whole clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from paper.memoriser import GREY, SPREAD
from paper.video_transformers import build_vivit
from trecvit.config import Config, Preprocessing, as_image_size
from trecvit.errors import InputError
from trecvit.train.networks import OTHER_NETWORKS, OtherNetwork


@dataclass(frozen=True, kw_only=True, slots=True)
class VivitMemoriserConfig(Config):
    """Architecture of a `VivitMemoriser`.

    Attributes:
        width: Channels D.
        depth: Layers.
        num_heads: Of the attention; divides `width`.
        mlp_width: Hidden channels of the MLPs.
        patch_size: Side of a square patch in pixels; one frame per patch.
        image_size: Height and width of the frames in pixels.
        num_frames: Frames for which positions are stored.
        offset: k of the frame to return, counted back from the last.
    """

    width: int
    depth: int
    num_heads: int
    mlp_width: int
    patch_size: int
    image_size: tuple[int, int]
    num_frames: int
    offset: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", as_image_size(self.image_size))
        self._require_whole("width", "depth", "num_heads", "mlp_width", "patch_size", "num_frames")
        self._require(self.width % self.num_heads == 0, "num_heads", f"a divisor of width={self.width}")
        self._require_whole("offset", least=0)
        divided = all(side % self.patch_size == 0 for side in self.image_size)
        self._require(divided, "image_size", f"a multiple of patch_size={self.patch_size} in both directions")

    @property
    def num_classes(self) -> int:
        """0: no classification head."""
        return 0


class VivitMemoriser(OtherNetwork, tags=["video-memorisation"]):
    """`memoriser(video)` reconstructs one frame of the past, see `paper.memoriser.Memoriser`."""

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
        # As in TRecViT; transformers initialises them with zeros, which do not distinguish frames.
        nn.init.normal_(self.vivit.embeddings.position_embeddings, std=config.width**-0.5)

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers."""
        layers: nn.ModuleList = self.vivit.layers
        return layers

    @property
    def embedding(self) -> nn.Conv3d:
        """The patch embedding."""
        projection: nn.Conv3d = self.vivit.embeddings.patch_embeddings.projection
        return projection

    @torch.no_grad()
    def set_embedding(self, weight: Float[Tensor, "D 3 1 side side"], bias: Float[Tensor, " D"]) -> None:
        """Set the patch embedding to these weights for pixels in [0,1]."""
        self.embedding.weight.copy_(weight * GREY)
        assert self.embedding.bias is not None, "transformers' embedding has a bias"
        self.embedding.bias.copy_(bias + GREY * weight.flatten(1).sum(dim=1))

    def forward(self, video: Shaped[Tensor, "B T 3 height width"]) -> Float[Tensor, "B 3 height width"]:
        """Reconstruct frame T-k of whole clips, of any number of frames.

        Args:
            video: uint8, or floating point in [0,1], of the configuration's size.

        Returns:
            float32, about [0,1], not clamped.

        Raises:
            InputError: for videos of another size.
        """
        size = (3, *self.config.image_size)
        if video.dim() != 5 or tuple(video.shape[2:]) != size or video.shape[1] < 1:
            raise InputError(
                f"expected a video [B,T,3,H,W] with T >= 1 of {size[1]}x{size[2]}, got {tuple(video.shape)}"
            )
        pixels = video.float() / 255.0 if video.dtype == torch.uint8 else video.float()
        pixels = (pixels.to(self.reader.weight.dtype) - GREY) / GREY  # ViViT's input is in [-1,1]
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
        """Positions of the class token and of the patches of `num_frames` frames.

        For another number of frames than the configuration's each takes that of the nearest (paper, appendix F: cubic
        interpolation is worse).
        """
        stored: Tensor = self.vivit.embeddings.position_embeddings
        if num_frames == self.config.num_frames:
            return stored
        over_time = stored[:, 1:].unflatten(1, (self.config.num_frames, -1)).movedim(1, 3)  # [1, P, D, T]
        resized = F.interpolate(over_time.flatten(1, 2), size=num_frames, mode="nearest")
        resized = resized.unflatten(1, over_time.shape[1:3]).movedim(3, 1).flatten(1, 2)
        return torch.cat([stored[:, :1], resized], dim=1)


OTHER_NETWORKS[VivitMemoriserConfig] = VivitMemoriser
