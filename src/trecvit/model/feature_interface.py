"""The methods by which timm's models give features, for a TRecViT on videos.

Names and arguments are those of timm's vision transformers (`timm.models.vision_transformer`), so that code for these
works unchanged: fine-tuning loops, feature pyramids, weight decay by name. An image's batch axis becomes the two axes
B T of a video.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from trecvit.config import ModelConfig
from trecvit.errors import ConfigError, InputError
from trecvit.model.engine import Optimizable
from trecvit.model.recompute import saving_inputs_only

_POOLINGS = {"token": "cls", "avg": "mean"}  # timm's names


class FeatureInterface(Optimizable):
    """timm's methods for features and heads; a base of `TRecViT`, whose parts are declared here."""

    config: ModelConfig
    tokenizer: Any
    blocks: nn.ModuleList
    norm: nn.LayerNorm
    head: Any
    recompute: Any
    init_state: Any
    _check_frames: Any
    _pixels: Any

    @abstractmethod
    def _new_head(self, config: ModelConfig) -> nn.Module | None:
        """A random head; None for no classes."""

    @property
    def num_features(self) -> int:
        """Channels D of `forward_features`."""
        return self.config.width

    @property
    def head_hidden_size(self) -> int:
        """Channels of `forward_head(…, pre_logits=True)`: R, or D without a head."""
        return self.config.head_width if self.head is not None else self.config.width

    @property
    def num_classes(self) -> int:
        """Number of classes V, 0 without a head."""
        return self.current_config().num_classes

    def forward_features(self, video: Shaped[Tensor, "B F 3 H W"]) -> Float[Tensor, "B T N D"]:
        """Compute the encoder's tokens after the final norm: `model(video).features`.

        Args:
            video: uint8, or floating point in [0,1].
        """
        features: Tensor = self(video).features
        return features

    def forward_head(self, features: Float[Tensor, "B T N D"], pre_logits: bool = False) -> Float[Tensor, "B V"]:
        """Classify features: `forward_head(forward_features(video))` equals `model(video).logits`.

        Args:
            features: Of a whole clip.
            pre_logits: Return the classifier's input [B,R] instead: the mean of all frames' evidence. Without a head,
                the mean of the pooled tokens [B,D] is returned either way.
        """
        if self.head is None:
            pooled = features[:, :, 0] if self.config.pooling == "cls" else features.mean(dim=2)
            return pooled.mean(dim=1)
        evidence: Tensor = self.head.evidence(features).mean(dim=1)
        return evidence if pre_logits else self.head(evidence)

    def forward_intermediates(
        self,
        x: Shaped[Tensor, "B F 3 H W"],
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: Literal["NCHW", "NLC"] = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Any] | tuple[Tensor, list[Any]]:
        """Compute features after some of the blocks.

        Args:
            x: A video: uint8, or floating point in [0,1].
            indices: Blocks by index, negative ones from the end; or the number of last blocks; None for all.
            return_prefix_tokens: Return pairs of patch features and class tokens [B,T,1,D]; a model that pools by the
                mean has [B,T,0,D].
            norm: Apply the final norm to each.
            stop_early: Compute no block after the last index; only with `intermediates_only`, as the final features
                need all.
            output_fmt: Patch features as maps "NCHW" [B,T,D,rows,columns] or tokens "NLC" [B,T,P,D].
            intermediates_only: Return the list alone.

        Returns:
            The final features, `model(x).features`, and the list of intermediate ones in rising order of their blocks.

        Raises:
            InputError: for a block that does not exist, another format, `stop_early` without `intermediates_only`, and
                whatever `model(x)` refuses.
            ConfigError: for a result of `optimize`, whose blocks another engine computes.
        """
        chosen = _chosen_blocks(indices, len(self.blocks))
        if output_fmt not in ("NCHW", "NLC"):
            raise InputError(f"output_fmt: expected 'NCHW' or 'NLC', got {output_fmt!r}")
        if stop_early and not intermediates_only:
            raise InputError("stop_early: expected intermediates_only=True too, as the final features need all blocks")
        self._check_not_optimized("forward_intermediates")
        self._check_frames(x)
        extent = self.config.temporal_patch_size
        if x.shape[1] < extent:
            raise InputError(f"expected at least temporal_patch_size={extent} frames, got {x.shape[1]}")
        tokens = self.tokenizer(self._pixels(x[:, : x.shape[1] // extent * extent]))
        grid = tuple(side // self.config.patch_size for side in x.shape[3:])
        num_prefix = tokens.shape[2] - grid[0] * grid[1]
        layers = self.init_state(x.shape[0], image_size=tuple(x.shape[3:])).layers
        fresh = torch.ones(x.shape[0], dtype=torch.bool, device=x.device)
        intermediates: list[Any] = []
        for index, (block, layer) in enumerate(zip(self.blocks, layers, strict=True)):
            run = saving_inputs_only(block) if self.recompute == "blocks" else block
            tokens, _ = run(tokens, layer, fresh)
            if index in chosen:
                taken = self.norm(tokens) if norm else tokens
                patches = taken[:, :, num_prefix:]
                if output_fmt == "NCHW":
                    patches = patches.unflatten(2, grid).movedim(-1, 2).contiguous()
                intermediates.append((patches, taken[:, :, :num_prefix]) if return_prefix_tokens else patches)
            if stop_early and index == max(chosen):
                break
        return intermediates if intermediates_only else (self.norm(tokens), intermediates)

    def get_classifier(self) -> nn.Module:
        """The last linear layer; the identity without a head."""
        classifier: nn.Module = nn.Identity() if self.head is None else self.head.classifier
        return classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a random one, or remove the head; the class names are dropped.

        The layer before it, if there is a head, keeps its weights.

        Args:
            num_classes: Number of classes; 0 removes the head.
            global_pool: "token" or "avg", if given: the pooling that the model has; another needs another model.

        Raises:
            ConfigError: for another pooling or a negative number, and for a result of `optimize`.
        """
        self._check_not_optimized("reset_classifier")
        pooling = self.config.pooling
        if global_pool is not None and _POOLINGS.get(global_pool) != pooling:
            mine = next(name for name, value in _POOLINGS.items() if value == pooling)
            raise ConfigError(f"global_pool: expected {mine!r}, the model's pooling={pooling!r}, got {global_pool!r}")
        config = self.config.replace(num_classes=num_classes)
        fresh: Any = self._new_head(config)
        if fresh is not None:
            weight = self.norm.weight
            fresh = fresh.to(device=weight.device, dtype=weight.dtype).train(self.training)
            if self.head is not None:
                fresh.pre_logits, fresh.dropout = self.head.pre_logits, self.head.dropout
        self.head = fresh
        self.relabel(())

    def no_weight_decay(self) -> set[str]:
        """Names of weights that training should not decay though they are matrices or class tokens.

        Biases, norms and other vectors are not listed, as in timm: optimisers leave them out by their shape.
        """
        return {name for name, _ in self.named_parameters() if name in ("tokenizer.positions", "tokenizer.cls")}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute whole blocks in the backward pass to save memory, see `recompute`, which offers more choices."""
        self.recompute = "blocks" if enable else "nothing"


def _chosen_blocks(indices: int | Sequence[int] | None, depth: int) -> set[int]:
    """Resolve block indices as timm does: None is all, a number the last so many, a sequence these."""
    if indices is None:
        return set(range(depth))
    if isinstance(indices, int):
        if not 1 <= indices <= depth:
            raise InputError(f"indices: expected 1 to {depth} last blocks, got {indices}")
        return set(range(depth - indices, depth))
    for index in indices:
        if not -depth <= index < depth:
            raise InputError(f"indices: expected blocks from {-depth} to {depth - 1}, got {index}")
    if not indices:
        raise InputError("indices: expected at least one block, got none")
    return {index % depth for index in indices}
