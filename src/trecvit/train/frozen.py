"""Frozen lower blocks in training: no gradient below, and each frame's tokens computed once."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from trecvit.errors import ConfigError, StateError
from trecvit.files import write_whole
from trecvit.model.lru import LayerState
from trecvit.model.state import State
from trecvit.model.trecvit import Output, SpatialBlock, TRecViT, through_blocks


def freeze(model: TRecViT, num_blocks: int) -> None:
    """Exclude the tokenizer and the first blocks from training.

    Raises:
        ConfigError: The model has not so many blocks, they mix over time, or a token spans several frames.
    """
    if model.config.temporal_patch_size != 1:
        raise ConfigError(
            "optimisation.frozen_blocks: expected 0 or model.temporal_patch_size=1, got temporal_patch_size="
            f"{model.config.temporal_patch_size}"
        )
    config = model.config
    most = config.depth - 1 if config.temporal_mixer == "none" else config.temporal_from
    if not 0 < num_blocks <= most:
        raise ConfigError(
            f"optimisation.frozen_blocks: expected at most {most}, the number of blocks without a temporal part "
            f"(model.temporal_from={config.temporal_from}) below the last, got {num_blocks}"
        )
    for part in (model.tokenizer, *model.blocks[:num_blocks]):
        part.requires_grad_(False)


class FrozenBelow:
    """A classifier's pass over frames whose tokenizer and first blocks are frozen: an `Engine` for its training.

    The frozen blocks see single frames, so that their tokens are a function of a frame's pixels. In training, a head
    with "cls" pooling reads only the class token of the last block, and only that is computed: `Output.features` then
    holds one token per frame.

    Args:
        model: After `freeze`, or with the weights of such a model.
        num_blocks: Number of its frozen blocks.
        token_dropout: Share of the patches that are left out in training, see `Optimisation`.
        folder: Where the tokens of each frame are kept in float16, for later epochs and runs with the same frozen
            weights; None: they are computed every time.
    """

    def __init__(
        self, model: TRecViT, num_blocks: int, folder: Path | None = None, *, token_dropout: float = 0.0
    ) -> None:
        self._model, self._num_blocks, self._token_dropout = model, num_blocks, token_dropout
        self._folder = None
        if folder is not None:
            self._folder = folder / self._fingerprint()
            self._folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, frames: Tensor, state: State, /) -> tuple[Output, State]:
        """See `Engine`.

        Raises:
            StateError: The state has seen frames: training clips start afresh.
        """
        if bool(state.frames_seen.any()):
            raise StateError("expected a state without frames, since training clips start afresh; use init_state")
        model, k = self._model, self._num_blocks
        tokens = self.tokens(frames)
        layers = state.layers
        if model.training and self._token_dropout:
            kept = self._kept(tokens.shape[2])
            tokens = tokens[:, :, kept]
            layers = tuple(LayerState(layer.hidden[:, kept], layer.taps[:, :, kept]) for layer in layers)
        fresh = torch.ones(len(frames), dtype=torch.bool, device=frames.device)
        recompute = model.recompute == "blocks"
        tokens, _ = through_blocks(model.blocks[k:-1], tokens, layers[k:-1], fresh, recompute=recompute)
        first_only = model.config.pooling == "cls"
        tokens, _ = model.blocks[-1](tokens, layers[-1], fresh, first_only=first_only)
        features = model.norm(tokens)
        assert model.head is not None, "a model that is trained to classify has a head"
        evidence = model.head.evidence(features).mean(dim=1).to(state.evidence.dtype)
        state = state.replace(evidence=evidence, frames_seen=state.frames_seen + frames.shape[1])
        return Output(*model.scores(state), features), state

    def _kept(self, num_tokens: int) -> Tensor:
        """Draw the tokens that stay, the class token among them."""
        num_cls = int(self._model.config.pooling == "cls")
        num_kept = max(round((num_tokens - num_cls) * (1 - self._token_dropout)), 1)
        patches = torch.randperm(num_tokens - num_cls)[:num_kept].sort().values + num_cls
        return torch.cat([torch.arange(num_cls), patches]).to(self._model.device)

    @torch.no_grad()
    def tokens(self, frames: Float[Tensor, "B T 3 H W"]) -> Float[Tensor, "B T N D"]:
        """Tokens of each frame after the frozen blocks, rounded to float16 so that kept and computed ones are equal."""
        if self._folder is None:
            computed: Tensor = self._computed(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
            return computed
        pixels = (frames.flatten(0, 1) * 255.0).round().byte()
        paths = [self._folder / hashlib.sha1(frame.cpu().numpy().tobytes()).hexdigest() for frame in pixels]
        rows = {path: row for row, path in enumerate(paths)}
        known = {path: kept for path in rows if (kept := self._read(path)) is not None}
        if missing := [path for path in rows if path not in known]:
            of_missing = self._computed(frames.flatten(0, 1)[[rows[path] for path in missing]])
            for path, tokens in zip(missing, of_missing.half().cpu(), strict=True):
                known[path] = tokens
                write_whole(path, partial(_write, tokens))
        stacked = torch.stack([known[path] for path in paths]).to(frames.device, self._model.dtype)
        computed = stacked.unflatten(0, frames.shape[:2])
        return computed

    def _computed(self, frames: Float[Tensor, "F 3 H W"]) -> Float[Tensor, "F N D"]:
        tokens: Tensor = self._model.tokenizer(frames[:, None])
        for block in self._model.blocks[: self._num_blocks]:
            spatial = cast(SpatialBlock, block.spatial)
            tokens = spatial(tokens)
        rounded: Tensor = tokens[:, 0].half().to(frames.dtype)
        return rounded

    def _fingerprint(self) -> str:
        """Identify the frozen function: weights, and the fields of the architecture that they do not show."""
        config = self._model.config
        fields = (self._num_blocks, config.num_heads, config.gelu, config.patch_size, config.pooling, config.positions)
        digest = hashlib.sha1(json.dumps(fields).encode())
        for part in (self._model.tokenizer, *self._model.blocks[: self._num_blocks]):
            for tensor in part.state_dict().values():
                digest.update(tensor.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _read(self, path: Path) -> Tensor | None:
        try:
            kept = bytearray(path.read_bytes())
        except FileNotFoundError:
            return None
        return torch.frombuffer(kept, dtype=torch.float16).view(-1, self._model.config.width)


def _write(tokens: Tensor, path: Path) -> None:
    path.write_bytes(tokens.contiguous().numpy().tobytes())
