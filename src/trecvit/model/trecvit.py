"""TRecViT (arXiv:2412.14294, Figure 1), from top to bottom: tokenizer, block, head, model.

B videos (streams) · F frames · T temporal patches, of one frame each by default · H W pixels · P patches per frame ·
N tokens per frame (P, plus a class token with "cls" pooling) · D width · M MLP width · R head width · V classes

Only the temporal block carries information from frame to frame, and only forward; everything else computes each frame
independently. So the model is causal, and a clip or its frames one after another are the same computation.
(The comparison models that attend to whole clips are the exception: `ModelConfig.can_stream`.)

Sources: "paper" the above; "code" github.com/google-deepmind/trecvit at 81bcb0a.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor, nn

from trecvit.config import Architecture, ImageSize, ModelConfig, Preprocessing, Recompute, as_image_size, model_config
from trecvit.errors import InputError, StateError
from trecvit.labels import check_labels
from trecvit.model.engine import Engine, Optimizable
from trecvit.model.feature_interface import FeatureInterface
from trecvit.model.initial import normal_
from trecvit.model.linear import GELU, Linear
from trecvit.model.lru import LayerState
from trecvit.model.mixers import TemporalPositions, temporal_part
from trecvit.model.pixels import check_pixels, unit_pixels
from trecvit.model.recompute import Recomputing, saving_inputs_only
from trecvit.model.state import State
from trecvit.pretrained import Labels

NORM_EPS = 1e-6  # code: flax's default; torch's own is 1e-5
_MAX_SEQUENCES = 65_535  # of fused attention on a GPU: one axis of a launch ends there

Video = Shaped[Tensor, "B T 3 H W"]


class Output(NamedTuple):
    """The result of a clip or of a step.

    Attributes:
        logits: Class scores given all frames so far, float32; None for a model without a head.
        probs: Their softmax, float32. Averaged over clips when there are several, as the original does.
        features: The encoder's tokens of the given frames, after the final norm.
    """

    logits: Float[Tensor, "B V"] | None
    probs: Float[Tensor, "B V"] | None
    features: Float[Tensor, "B T N D"]


class Tokenizer(nn.Module):
    """Linear patch embedding plus positions (paper, section 3).

    Args:
        config: The architecture.
        antialias: Whether learned positions are antialiased when they are resized for frames of another size than
            `config.image_size`.
    """

    def __init__(self, config: ModelConfig, *, antialias: bool = True) -> None:
        super().__init__()
        self.config = config
        self.antialias = antialias
        fan_in = 3 * config.temporal_patch_size * config.patch_size**2
        self.embedding = Linear(fan_in, config.width)
        init_lecun(self.embedding)
        self.positions: nn.Parameter | None = None
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.empty(config.num_patches, config.width))
            normal_(self.positions, config.width**-0.5)
        # code: the class token starts at zero and gets no position.
        self.cls = nn.Parameter(torch.zeros(config.width)) if config.pooling == "cls" else None
        self.time = TemporalPositions(config) if not config.can_stream else None

    def forward(
        self, frames: Float[Tensor, "B F 3 H W"], visible: Int64[Tensor, "B K"] | None = None
    ) -> Float[Tensor, "B T N D"]:
        """Tokens of F = T * temporal_patch_size frames.

        Args:
            frames: Pixels in [0,1].
            visible: Indices of the patches to tokenize, the same in all frames of a video and in the order of the
                resulting tokens; by default all. The others cost no time.
        """
        side = self.config.patch_size
        patches = patches_of(frames, self.config)
        positions = self._positions_for(frames.shape[3] // side, frames.shape[4] // side)
        if visible is not None:
            patches = patches.take_along_dim(visible[:, None, :, None], dim=2)
            positions = positions[visible][:, None]
        tokens: Tensor = self.embedding(patches) + positions
        if self.cls is not None:
            cls = self.cls.expand(*tokens.shape[:2], 1, -1)
            tokens = torch.cat([cls, tokens], dim=2)
        return tokens if self.time is None else self.time(tokens)

    def _positions_for(self, rows: int, columns: int) -> Float[Tensor, "P D"]:
        if self.positions is None:
            weight = self.embedding.bias
            # Made on the device: a CUDA graph cannot record a copy from the host.
            return sincos_positions(rows, columns, self.config.width, device=weight.device).to(weight)
        trained_rows, trained_columns = (side // self.config.patch_size for side in self.config.image_size)
        if (rows, columns) == (trained_rows, trained_columns):
            return self.positions
        grid = self.positions.float().view(1, trained_rows, trained_columns, -1).permute(0, 3, 1, 2)  # [1,D,rows,cols]
        grid = F.interpolate(grid, size=(rows, columns), mode="bicubic", antialias=self.antialias)
        return grid[0].flatten(1).T.to(self.positions.dtype)


class SpatialBlock(Recomputing):
    """A pre-norm ViT block on the tokens of each frame: attention, then an MLP (paper, section 3).

    In the models of Figure 4 the same block attends to the tokens of all frames of the clip ("full_attention"), or to
    those of a token's own and earlier frames ("causal_attention").

    Attributes:
        max_plain_tokens: Up to so many tokens attention on the CPU is plain matrix multiplications, which store N x N
            scores; beyond, PyTorch's fused kernel.
    """

    max_plain_tokens = 512

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.frame_by_frame = config.temporal_mixer not in ("full_attention", "causal_attention")
        self.causal = config.temporal_mixer == "causal_attention"
        self.attention_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.qkv = Linear(width, 3 * width)
        self.attention_out = Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp_up = Linear(width, config.mlp_width)
        self.gelu = nn.GELU(approximate=GELU[config.gelu])
        self.mlp_down = Linear(config.mlp_width, width)
        # code: xavier_uniform for every kernel (queries, keys and values separately), zero and N(0, 1e-6) biases.
        for kernel in (*self.qkv.weight.chunk(3), self.attention_out.weight, self.mlp_up.weight, self.mlp_down.weight):
            nn.init.xavier_uniform_(kernel)
        for bias in (self.qkv.bias, self.attention_out.bias):
            nn.init.zeros_(bias)
        for bias in (self.mlp_up.bias, self.mlp_down.bias):
            normal_(bias, 1e-6)

    def forward(
        self,
        x: Float[Tensor, "B T N D"],
        *,
        first_only: bool = False,
        attended: Bool[Tensor, "B T N"] | None = None,
    ) -> Float[Tensor, "B T n D"]:
        """Mix the tokens within each frame, or in the models of Figure 4 within the clip.

        Args:
            x: Tokens.
            first_only: Compute only the first token of each frame (n = 1): all that a head with "cls" pooling reads of
                the last block, for about a third of the block's cost in training. Not with `attended`.
            attended: Tokens that others in their frame attend to, beside themselves; by default all.
        """
        if first_only:
            return self._first_token(x)
        # `_stage` returns the function itself, unless the backward pass is to recompute it: see `VideoModel.recompute`.
        qkv = self._stage(self._queries_keys_values)(x)
        x = self._stage(self._attention)(qkv, x, attended)
        return self._stage(self._down)(self._stage(self._up)(x), x)

    def _first_token(self, x: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T 1 D"]:
        normed = self.attention_norm(x)
        to_query, to_keys_values = self.qkv.weight.tensor_split([x.shape[-1]])
        query_bias, keys_values_bias = self.qkv.bias.tensor_split([x.shape[-1]])
        query = F.linear(normed[:, :, :1], to_query, query_bias).unflatten(-1, (self.num_heads, -1))
        keys, values = (
            F.linear(normed, to_keys_values, keys_values_bias).unflatten(-1, (2, self.num_heads, -1)).unbind(3)
        )
        scores = torch.einsum("btqgd,btngd->btgn", query, keys) * query.shape[-1] ** -0.5
        mixed = torch.einsum("btgn,btngd->btgd", scores.softmax(dim=-1), values).flatten(2)[:, :, None]
        first = self.attention_out(mixed, add=x[:, :, :1])
        return self._down(self._up(first), first)

    def _queries_keys_values(self, x: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T N QKV"]:
        qkv: Tensor = self.qkv(self.attention_norm(x))
        return qkv

    def _attention(
        self, qkv: Float[Tensor, "B T N QKV"], x: Float[Tensor, "B T N D"], attended: Bool[Tensor, "B T N"] | None
    ) -> Float[Tensor, "B T N D"]:
        # S sequences of N tokens: one per frame, or in the models of Figure 4 one per clip, of T * N tokens.
        sequences = qkv.flatten(0, 1) if self.frame_by_frame else qkv.flatten(1, 2)  # [S,N,3D]
        heads = sequences.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [3,S,G,N,D/G]
        if attended is not None:
            itself = torch.eye(x.shape[2], dtype=torch.bool, device=x.device)
            mask = attended.flatten(0, 1)[:, None, None] | itself  # [S,1,N,N]
            queries, keys, values = heads
            mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        elif self.causal:
            queries, keys, values = heads
            frame_of = torch.arange(x.shape[1], device=x.device).repeat_interleave(x.shape[2])
            is_attended = frame_of[:, None] >= frame_of
            mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=is_attended)
        else:
            mixed = attend(heads, max_plain_tokens=self.max_plain_tokens)
        mixed = mixed.transpose(1, 2).reshape(x.shape)  # [S,G,N,D/G] -> [S,N,G,D/G] -> [B,T,N,D]
        x = self.attention_out(mixed, add=x)
        return x

    def _up(self, x: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T N M"]:
        hidden: Tensor = self.mlp_up(self.mlp_norm(x))
        return hidden

    def _down(self, hidden: Float[Tensor, "B T N M"], x: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T N D"]:
        hidden = self.gelu(hidden)
        x = self.mlp_down(hidden, add=x)
        return x


class Block(nn.Module):
    """Time, then space, then channels, each with a skip connection."""

    def __init__(self, config: ModelConfig, index: int = 0) -> None:
        super().__init__()
        self.temporal = temporal_part(config) if index >= config.temporal_from else None
        self.spatial = SpatialBlock(config) if config.temporal_mixer != "flat_lru" else None

    def forward(
        self, x: Float[Tensor, "B T N D"], state: LayerState, fresh: Bool[Tensor, " B"], *, first_only: bool = False
    ) -> tuple[Float[Tensor, "B T n D"], LayerState]:
        """Compute one block; see `TemporalBlock.forward` and `SpatialBlock.forward` for the arguments."""
        if self.temporal is not None:
            x, state = self.temporal(x, state, fresh)
        if self.spatial is not None:
            x = self.spatial(x, first_only=first_only)
        return x, state


class Head(nn.Module):
    """Pooled tokens, tanh(linear), mean over all frames so far, linear (code: ClassificationDecoder)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pooling = config.pooling
        self.dropout = 0.0  # share of the evidence dropped in training (paper, Table 9, "cls dropout")
        self.pre_logits = Linear(config.width, config.head_width)
        self.classifier = Linear(config.head_width, config.num_classes)
        init_lecun(self.pre_logits)
        init_lecun(self.classifier)

    def evidence(self, features: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T R"]:
        """Each frame's contribution to the mean."""
        pooled = features[:, :, 0] if self.pooling == "cls" else features.mean(dim=2)
        return torch.tanh(self.pre_logits(pooled))

    def forward(self, mean_evidence: Float[Tensor, "B R"]) -> Float[Tensor, "B V"]:
        """Logits of the mean of all frames' evidence, float32."""
        mean_evidence = F.dropout(mean_evidence, self.dropout, self.training)
        logits: Tensor = self.classifier(mean_evidence.to(self.classifier.bias.dtype))
        return logits.float()


class VideoModel(Optimizable):
    """The common base of all models: tokenizer, blocks and a final norm."""

    def __init__(
        self,
        config: Architecture,
        blocks: ModelConfig,
        *,
        norm_eps: float = NORM_EPS,
        antialias: bool = True,
        preprocessing: Preprocessing | None = None,
        labels: Labels = (),
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(config, preprocessing=preprocessing, labels=labels, provenance=provenance)
        self.tokenizer = Tokenizer(blocks, antialias=antialias)
        self.blocks = nn.ModuleList(Block(blocks, index) for index in range(blocks.depth))
        self.norm = nn.LayerNorm(blocks.width, eps=norm_eps)
        self._recompute: Recompute = "nothing"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype. The recurrence and its state are float32 at least."""
        return self.norm.weight.dtype

    @property
    def recompute(self) -> Recompute:
        """What the backward pass recomputes instead of reading it from memory.

        "nothing"; "cheap": everything but the linear layers; "blocks": whole blocks, of which only the inputs are
        saved. Values and gradients are the same.
        """
        return self._recompute

    @recompute.setter
    def recompute(self, recompute: Recompute) -> None:
        self._recompute = recompute
        for module in self.modules():
            if isinstance(module, Recomputing):
                module.recomputes = recompute == "cheap"

    def _through_blocks(
        self, tokens: Tensor, layers: tuple[LayerState, ...], fresh: Tensor
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        return through_blocks(self.blocks, tokens, layers, fresh, recompute=self.recompute == "blocks")

    def _pixels(self, frames: Tensor) -> Tensor:
        """Frames in [0,1], in the weights' dtype."""
        return unit_pixels(frames, self.dtype)

    def _check_frames(self, frames: Tensor) -> None:
        self._check_shape(frames)
        check_pixels(frames)

    def _check_shape(self, frames: Tensor) -> None:
        if frames.dim() != 5 or frames.shape[2] != 3 or frames.shape[1] < 1:
            raise InputError(
                f"expected a video [B,T,C,H,W] with T >= 1 and C = 3 colours, got {tuple(frames.shape)}"
                + (" (channels last? use video.movedim(-1, 2))" if frames.dim() == 5 and frames.shape[4] == 3 else "")
            )
        if frames.dtype != torch.uint8 and not frames.is_floating_point():
            raise InputError(f"expected pixels as uint8, or floating point in [0,1], got {frames.dtype}")
        self._check_image_size(frames.shape[3], frames.shape[4])

    def _image_size(self, given: ImageSize | None) -> tuple[int, int]:
        """The checked height and width of frames, by default those of `preprocessing`."""
        size = self.preprocessing.image_size if given is None else as_image_size(given)
        self._check_image_size(*size)
        return size

    def _check_image_size(self, height: int, width: int) -> None:
        side = self.tokenizer.config.patch_size
        if height % side or width % side or height < side or width < side:
            raise InputError(f"expected height and width that patch_size={side} divides, got {height}x{width} pixels")


class TRecViT(FeatureInterface, VideoModel, tags=["video-classification"]):
    """The classifier: `model(video)` for whole clips, `model.step(frames, state)` for streams, with the same weights.

    See `Pretrained` for its description, and for saving and loading; `FeatureInterface` for timm's methods.
    """

    config: ModelConfig
    head: Head | None
    engine: Engine[Output, State]
    _transformers_keys = {"model_type": "trecvit", "architectures": ["TRecViTForVideoClassification"]}  # noqa: RUF012

    def __init__(
        self,
        config: ModelConfig,
        *,
        preprocessing: Preprocessing | None = None,
        labels: Labels = (),
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(config, config, preprocessing=preprocessing, labels=labels, provenance=provenance)
        self.head = self._new_head(config)

    def _new_head(self, config: ModelConfig) -> Head | None:
        return Head(config) if config.num_classes else None

    def current_config(self) -> ModelConfig:
        """`config` with the head's present number of classes, 0 if it was set to None."""
        if not hasattr(self, "head"):  # during construction
            return self.config
        num_classes = self.config.num_classes if self.head is not None else 0
        if isinstance(classifier := getattr(self.head, "classifier", None), nn.Linear):
            num_classes = classifier.weight.shape[0]
        return self.config.replace(num_classes=num_classes)

    def forward(self, video: Video, *, frames_per_clip: int | None = None) -> Output:
        """Classify whole videos.

        Args:
            video: uint8, or floating point in [0,1].
            frames_per_clip: Cut the video into max(T // frames_per_clip, 1) clips of equal length, each with a fresh
                state, and average their logits and their probabilities (code: TRecViT.__call__). By default the video
                is one clip.

        Returns:
            The output for all frames but those beyond the last whole temporal patch.

        Raises:
            InputError: for shapes, dtypes or values that are not a video, and when the clips would differ in length.
        """
        self._check_shape(video)  # `step` checks its pixels
        batch_size, num_frames = video.shape[:2]
        num_clips = max(num_frames // frames_per_clip, 1) if frames_per_clip else 1
        if num_frames % num_clips:
            raise InputError(
                f"frames_per_clip={frames_per_clip} cuts {num_frames} frames into {num_clips} clips of unequal length; "
                f"give a multiple of {frames_per_clip} frames"
            )
        if num_frames // num_clips < self.config.temporal_patch_size:
            raise InputError(
                f"expected at least temporal_patch_size={self.config.temporal_patch_size} frames per clip, "
                f"got {num_frames // num_clips}"
            )
        clips = video.reshape(batch_size * num_clips, num_frames // num_clips, *video.shape[2:])
        state = self.init_state(clips.shape[0], image_size=(video.shape[3], video.shape[4]))
        out, _ = self.step(clips, state)
        features = out.features.unflatten(0, (batch_size, num_clips)).flatten(1, 2)
        if out.logits is None or out.probs is None:
            return Output(None, None, features)
        logits = out.logits.unflatten(0, (batch_size, num_clips)).mean(dim=1)
        probs = out.probs.unflatten(0, (batch_size, num_clips)).mean(dim=1)
        return Output(logits, probs, features)

    def init_state(self, batch_size: int, *, image_size: ImageSize | None = None) -> State:
        """The state of `batch_size` streams before their first frame.

        Args:
            batch_size: Number of streams B, 0 or more.
            image_size: Height and width of the frames, by default those of `preprocessing`.

        Raises:
            InputError: for a negative number of streams, and a size that patches do not divide.
        """
        size = self._image_size(image_size)
        return State.zeros(self.config, batch_size, image_size=size, device=self.device, dtype=self.dtype)

    def step(self, frames: Video, state: State) -> tuple[Output, State]:
        """Process the next frames of every stream, any number of them.

        However a video is cut into steps, the last gives the same logits as `model(video)`.

        Args:
            frames: uint8, or floating point in [0,1]; row b belongs to stream b.
            state: From `init_state` or the last `step`. It is not changed.

        Returns:
            The output and the new state. Logits are for all frames so far, features for these frames. With
            temporal_patch_size p > 1, frames wait in the state until p have arrived; before the first p there is no
            evidence and the logits are the head's bias. When rows are at different frames of a patch, one may complete
            fewer patches than another: its missing features are NaN, in front.

        Raises:
            InputError: for shapes, dtypes or values that are not frames.
            StateError: when the state belongs to another model, batch, image size, dtype or device.
        """
        self._check_frames(frames)
        self._check_state(frames, state)
        frames = self._pixels(frames)
        if self.config.temporal_patch_size == 1:
            return self.engine(frames, state)
        return self._advance_whole_patches(frames, state)

    def _advance_whole_patches(self, frames: Tensor, state: State) -> tuple[Output, State]:
        """Put the pending frames in front and keep back the incomplete patch, grouping rows by their pending frames."""
        extent = self.config.temporal_patch_size
        num_pending = state.frames_seen % extent
        counts = num_pending.unique().tolist() or [0]
        groups = [(num_pending == count).nonzero()[:, 0] for count in counts]
        parts: list[tuple[Output, State]] = []
        for count, rows in zip(counts, groups, strict=True):
            before = state.select(rows)
            available = torch.cat([before.pending[:, :count], frames[rows]], dim=1)
            num_used = available.shape[1] // extent * extent
            out, after = self.engine(available[:, :num_used], before)
            left_over = available[:, num_used:]
            pending = F.pad(left_over, (0, 0) * 3 + (0, extent - 1 - left_over.shape[1]))
            after = after.replace(pending=pending, frames_seen=before.frames_seen + frames.shape[1])
            parts.append((out, after))
        if len(parts) == 1:
            return parts[0]
        order = torch.cat(groups).argsort()
        most = max(out.features.shape[1] for out, _ in parts)
        features = torch.cat(
            [F.pad(out.features, (0, 0, 0, 0, most - out.features.shape[1], 0), value=math.nan) for out, _ in parts]
        )[order]
        state = State.cat([after for _, after in parts]).select(order)
        return Output(*self.scores(state), features), state

    def _advance(self, frames: Tensor, state: State) -> tuple[Output, State]:
        """Compute the pass over a whole number of temporal patches that an `Engine` may take over."""
        tokens = self.tokenizer(frames)
        patches_seen = state.frames_seen // self.config.temporal_patch_size
        layers = state.layers
        if tokens.shape[1]:
            tokens, layers = self._through_blocks(tokens, layers, patches_seen == 0)
        features = self.norm(tokens)
        state = state.replace(layers=layers, frames_seen=state.frames_seen + frames.shape[1])
        if self.head is None:
            return Output(None, None, features), state
        # A running mean, not a sum: after very many frames a float32 sum stops growing and would fade out.
        evidence = self.head.evidence(features).to(state.evidence.dtype)
        total = (patches_seen + features.shape[1]).clamp(min=1)[:, None].to(evidence.dtype)
        correction = evidence.sum(dim=1) - features.shape[1] * state.evidence
        state = state.replace(evidence=state.evidence + correction / total)
        return Output(*self.scores(state), features), state

    def scores(self, state: State) -> tuple[Tensor | None, Tensor | None]:
        """Logits and probabilities given all frames that a state has seen; None without a head."""
        if self.head is None:
            return None, None
        logits = self.head(state.evidence)
        return logits, logits.softmax(dim=-1)

    def _check_state(self, frames: Tensor, state: State) -> None:
        if not isinstance(state, State):
            raise StateError(f"expected a State from init_state or step, got {type(state).__name__}")
        state.check_fits(frames, self.config, device=self.device, dtype=self.dtype)


def through_blocks(
    blocks: nn.ModuleList, tokens: Tensor, layers: tuple[LayerState, ...], fresh: Tensor, *, recompute: bool
) -> tuple[Tensor, tuple[LayerState, ...]]:
    """Run all blocks, see `Block.forward`; with `recompute`, the backward pass recomputes each from its inputs."""
    after = []
    for block, layer in zip(blocks, layers, strict=True):
        run = saving_inputs_only(block) if recompute else block
        tokens, layer = run(tokens, layer, fresh)
        after.append(layer)
    return tokens, tuple(after)


def create_model(preset: str, *, labels: Labels = (), **overrides: Any) -> TRecViT:
    """Create a randomly initialised model.

    Args:
        preset: "tiny", "small", "base", "large" (the paper's sizes) or "base_k400" (the released checkpoint's).
        labels: Names of the classes, see `relabel`; they set `num_classes` when that is not given.
        overrides: Any fields of `ModelConfig`.

    Raises:
        ConfigError: for an unknown preset or field, and for impossible values.
    """
    names = check_labels(labels)
    if names and "num_classes" not in overrides:
        overrides["num_classes"] = len(names)
    return TRecViT(model_config(preset, **overrides), labels=names)


def patches_of(frames: Shaped[Tensor, "B F 3 H W"], config: ModelConfig) -> Shaped[Tensor, "B T P pixels"]:
    """The pixels of each patch of F = T * temporal_patch_size frames: by colour, frame, row and column."""
    batch_size, num_frames, colours, height, width = frames.shape
    extent, side = config.temporal_patch_size, config.patch_size
    rows, columns = height // side, width // side
    pixels = frames.reshape(batch_size, num_frames // extent, extent, colours, rows, side, columns, side)
    pixels = pixels.permute(0, 1, 4, 6, 3, 2, 5, 7)  # [B,T,rows,columns,colours,extent,side,side]
    patches: Tensor = pixels.flatten(4).flatten(2, 3)
    return patches


def frames_of(
    patches: Float[Tensor, "B T P pixels"], config: ModelConfig, image_size: tuple[int, int]
) -> Float[Tensor, "B F 3 H W"]:
    """Inverse of `patches_of`."""
    extent, side = config.temporal_patch_size, config.patch_size
    rows, columns = (length // side for length in image_size)
    pixels = patches.unflatten(3, (3, extent, side, side)).unflatten(2, (rows, columns))
    pixels = pixels.permute(0, 1, 5, 4, 2, 6, 3, 7)  # [B,T,extent,colours,rows,side,columns,side]
    frames: Tensor = pixels.flatten(6).flatten(4, 5).flatten(1, 2)
    return frames


def sincos_positions(
    rows: int, columns: int, width: int, *, device: torch.device | None = None
) -> Float[Tensor, "P D"]:
    """Fixed positions: sines and cosines of x, then of y, in D/4 frequencies from 1 to 1/10000 (code: MoCo v3's)."""
    frequencies = 10_000.0 ** -torch.linspace(0.0, 1.0, width // 4, dtype=torch.float64, device=device)
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    angles_x, angles_y = (axis.flatten()[:, None] * frequencies for axis in (x, y))
    return torch.cat([angles_x.sin(), angles_x.cos(), angles_y.sin(), angles_y.cos()], dim=1).float()


def attend(heads: Float[Tensor, "3 S G N d"], *, max_plain_tokens: int) -> Float[Tensor, "S G N d"]:
    """Softmax attention: plain matrix multiplications for few tokens on the CPU, else PyTorch's fused kernel."""
    if heads.is_cuda and heads.shape[1] > _MAX_SEQUENCES:
        parts = heads.split(_MAX_SEQUENCES, dim=1)
        return torch.cat([attend(part, max_plain_tokens=max_plain_tokens) for part in parts])
    if heads.device.type != "cpu" or heads.shape[3] > max_plain_tokens:
        queries, keys, values = heads
        fused: Tensor = F.scaled_dot_product_attention(queries, keys, values)
        return fused
    if heads.dtype == torch.bfloat16:
        heads = heads.contiguous()  # one copy of all, where oneDNN's matrix multiplications would each make their own
    queries, keys, values = heads.flatten(1, 2)  # each [SG,N,d]
    # Not (queries * scale) @ keys, which is one pass over memory more.
    unread, scale = queries.new_empty(1, 1, 1), queries.shape[-1] ** -0.5
    scores = torch.baddbmm(unread, queries, keys.transpose(-2, -1), beta=0.0, alpha=scale)
    mixed: Tensor = torch.bmm(scores.softmax(dim=-1).to(values.dtype), values).unflatten(0, heads.shape[1:3])
    return mixed


def init_lecun(linear: nn.Linear) -> None:
    """Initialise as flax does: a normal of variance 1/inputs cut off at two deviations, and zero for any bias."""
    # 0.8796... is the deviation of a standard normal cut off at +-2.
    std = linear.in_features**-0.5 / 0.87962566103423978
    nn.init.trunc_normal_(linear.weight, std=std, a=-2 * std, b=2 * std)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
