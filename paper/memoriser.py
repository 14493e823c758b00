"""TRecViT for long-video memorisation (paper, section 5.4): from T frames, reconstruct frame T-k.

As in the paper the input is the tokens of the last frame alone, so that all information on frame T-k is in the
recurrences' states. The paper reshapes them: its base model's 768 channels are a patch's 16 x 16 pixels of 3 colours.
A linear layer in between allows other widths.

B videos (streams) · T frames · P patches per frame · D width · k offset
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from trecvit.config import BlocksConfig, ImageSize, Preprocessing
from trecvit.errors import InputError
from trecvit.model.engine import Engine
from trecvit.model.pixels import unit_pixels
from trecvit.model.state import State
from trecvit.model.trecvit import VideoModel, frames_of, init_lecun
from trecvit.train.networks import OTHER_NETWORKS

# An output of 0 is mid-grey and one of size 1 a usual contrast, so that initial outputs have the right scale.
GREY, SPREAD = 0.5, 0.25

Clips = Shaped[Tensor, "B T 3 height width"]


def past_frame(video: Clips, offset: int) -> Float[Tensor, "B 3 height width"]:
    """Frame T-k of T, counted from 1, of uint8 or [0,1] videos, in [0,1]; offset k = 0 is the last.

    Raises:
        InputError: when the videos are too short.
    """
    if not 0 <= offset < video.shape[1]:
        raise InputError(f"expected an offset from 0 to {video.shape[1] - 1} in {video.shape[1]} frames, got {offset}")
    frame = video[:, video.shape[1] - 1 - offset]
    return unit_pixels(frame)


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoriserConfig(BlocksConfig):
    """Architecture of a `Memoriser`: blocks and a linear reader.

    Attributes:
        offset: k of the frame to return, counted back from the last.
    """

    offset: int

    def __post_init__(self) -> None:
        self._require_blocks(num_classes=0, temporal_patch_size=1)
        self._require_streaming()
        self._require_whole("offset", least=0)


class Memoriser(VideoModel, tags=["video-memorisation"]):
    """`memoriser(video)` reconstructs one frame of the past; `step` does so in a stream."""

    config: MemoriserConfig
    config_class = MemoriserConfig
    engine: Engine[Tensor, State]

    def __init__(
        self,
        config: MemoriserConfig,
        *,
        preprocessing: Preprocessing | None = None,
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(config, config.blocks, preprocessing=preprocessing, provenance=provenance)
        self.reader = nn.Linear(config.blocks.width, 3 * config.blocks.patch_size**2)
        init_lecun(self.reader)

    def forward(self, video: Clips) -> Float[Tensor, "B 3 height width"]:
        """Reconstruct frame T-k of whole clips.

        Args:
            video: uint8, or floating point in [0,1].

        Returns:
            float32, about [0,1], not clamped.

        Raises:
            InputError: for shapes, dtypes or values that are not a video.
        """
        self._check_shape(video)  # its pixels are checked by `step`
        frame, _ = self.step(video, self.init_state(len(video), image_size=(video.shape[3], video.shape[4])))
        return frame

    def init_state(self, batch_size: int, *, image_size: ImageSize | None = None) -> State:
        """The state of `batch_size` streams before their first frame, see `TRecViT.init_state`."""
        size = self._image_size(image_size)
        return State.zeros(self.config.blocks, batch_size, image_size=size, device=self.device, dtype=self.dtype)

    def step(self, frames: Clips, state: State) -> tuple[Float[Tensor, "B 3 height width"], State]:
        """Process the next frames of every stream; reconstruct the frame k before the last of them.

        Raises:
            InputError: for shapes, dtypes or values that are not frames.
            StateError: when the state belongs to another model, batch, image size, dtype or device.
        """
        self._check_frames(frames)
        state.check_fits(frames, self.config.blocks, device=self.device, dtype=self.dtype)
        return self.engine(self._pixels(frames), state)

    def _advance(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        tokens, layers = self._through_blocks(self.tokenizer(frames), state.layers, state.frames_seen == 0)
        state = state.replace(layers=layers, frames_seen=state.frames_seen + frames.shape[1])
        blocks, size = self.config.blocks, (frames.shape[3], frames.shape[4])
        # A class token is in front.
        last = tokens[:, -1:, int(blocks.pooling == "cls") :]
        patches = self.reader(self.norm(last)).float() * SPREAD + GREY
        return frames_of(patches, blocks, size)[:, 0], state


OTHER_NETWORKS[MemoriserConfig] = Memoriser
