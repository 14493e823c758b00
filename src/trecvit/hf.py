"""TRecViT in Hugging Face's transformers: importing this module registers it with their `Auto` classes.

    import trecvit.hf
    from transformers import pipeline

    trecvit.load("motions").save_pretrained("motions")
    pipeline("video-classification", model="motions")("video.mp4")

A folder that `TRecViT.save_pretrained` writes serves both libraries; `trecvit.load` also reads what this module saves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trecvit.config import ModelConfig, Preprocessing
from trecvit.errors import InputError, MissingPackageError
from trecvit.labels import check_labels, why_no_label
from trecvit.model.trecvit import TRecViT
from trecvit.pretrained import PROCESSOR_FILE, PROCESSOR_TYPE
from trecvit.runtime.predict import read_clips
from trecvit.video.decode import open_video
from trecvit.video.transforms import to_clip

try:
    from transformers import AutoConfig, AutoModelForVideoClassification, PreTrainedConfig, PreTrainedModel
    from transformers.image_processing_base import BatchFeature
    from transformers.modeling_outputs import ImageClassifierOutput
    from transformers.models.auto.video_processing_auto import AutoVideoProcessor
    from transformers.video_processing_utils import BaseVideoProcessor
except ImportError as error:
    raise MissingPackageError("transformers", needed_for="trecvit.hf", extra="hf") from error

Videos = str | Path | np.ndarray | Tensor | Sequence[Any]


class TRecViTConfig(PreTrainedConfig):  # type: ignore[misc]
    """The content of a saved TRecViT's `config.json`, with the fields that transformers needs.

    Args:
        model: Fields of `trecvit.ModelConfig`; by default its own defaults.
        preprocessing: Fields of `trecvit.Preprocessing`.
        labels: Names of the classes; by default those of `id2label`, if given.
        kwargs: transformers' own fields. `num_labels` and `id2label` are those of the head.
    """

    model_type = "trecvit"

    def __init__(
        self,
        *,
        model: Mapping[str, Any] | None = None,
        preprocessing: Mapping[str, Any] | None = None,
        labels: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        blocks = ModelConfig.from_dict(model or {})
        frames = Preprocessing.from_dict(preprocessing or {"image_size": blocks.image_size})
        self.model, self.preprocessing = blocks.to_dict(), frames.to_dict()
        self.num_frames = frames.num_frames  # read by the pipeline
        if labels and kwargs.get("id2label") is None:
            kwargs["id2label"] = dict(enumerate(labels))
            kwargs["label2id"] = {name: index for index, name in enumerate(labels)}
        if kwargs.get("id2label") is None and "num_labels" not in kwargs:
            kwargs["num_labels"] = blocks.num_classes
        super().__init__(**kwargs)

    def architecture_config(self) -> ModelConfig:
        """The architecture, with as many classes as there are labels."""
        return ModelConfig.from_dict({**self.model, "num_classes": self.num_labels})


class TRecViTForVideoClassification(PreTrainedModel):  # type: ignore[misc]
    """A TRecViT with transformers' interface; the attribute `trecvit` is the model itself."""

    config_class = TRecViTConfig
    base_model_prefix = "trecvit"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True

    def __init__(self, config: TRecViTConfig) -> None:
        super().__init__(config)
        preprocessing = Preprocessing.from_dict(config.preprocessing)
        self.trecvit = TRecViT(config.architecture_config(), preprocessing=preprocessing, labels=_names(config))
        self.post_init()

    @classmethod
    def of(cls, model: TRecViT) -> TRecViTForVideoClassification:
        """Wrap a loaded model, without copying its weights."""
        description = model.description()
        config = TRecViTConfig(**{key: description[key] for key in ("model", "preprocessing", "labels")})
        with torch.device("meta"):
            wrapped = cls(config)
        wrapped.trecvit = model
        wrapped.train(model.training)
        return wrapped

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any) -> ImageClassifierOutput:
        """Classify clips.

        Args:
            pixel_values: [B,T,3,H,W] in [0,1], as the video processor gives them, or uint8.
            labels: Classes [B]; with them the output has the mean cross-entropy as `loss`.
        """
        out = self.trecvit(pixel_values)
        loss = None if labels is None else F.cross_entropy(out.logits, labels)
        return ImageClassifierOutput(loss=loss, logits=out.logits)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write a folder for both libraries, see `trecvit.TRecViT.save_pretrained`."""
        if kwargs.get("state_dict") is not None:
            raise InputError("save_pretrained: expected no state_dict, because the model's own weights are saved")
        self.trecvit.labels = _names(self.config)
        self.trecvit.save_pretrained(save_directory)

    def _set_gradient_checkpointing(self, enable: bool = True, **_: Any) -> None:
        self.trecvit.set_grad_checkpointing(enable)


class TRecViTVideoProcessor(BaseVideoProcessor):  # type: ignore[misc]
    """Convert videos to a TRecViT's input pixels, the same as those of `trecvit classify --clips 1`.

    Args:
        preprocessing: Fields of `trecvit.Preprocessing`.
    """

    model_input_names = ("pixel_values",)

    def __init__(self, preprocessing: Mapping[str, Any] | None = None, **_: Any) -> None:
        self.preprocessing = Preprocessing.from_dict(preprocessing or {}).to_dict()

    def __call__(self, videos: Videos, **options: Any) -> BatchFeature:
        """See `preprocess`."""
        return self.preprocess(videos, **options)

    def preprocess(self, videos: Videos, num_frames: int | None = None, **_: Any) -> BatchFeature:
        """Prepare one video or several.

        Args:
            videos: Paths or addresses, of which the middle clip is read; or the frames of clips, of which all are used:
                uint8 [T,H,W,3] as an array, or [T,3,H,W] as a tensor.
            num_frames: Length of a clip that is read, by default the training clips'.

        Returns:
            `pixel_values` [B,T,3,h,w] in [0,1].

        Raises:
            VideoError: A file cannot be read.
            InputError: Frames are not uint8 in one of these shapes.
        """
        plan = Preprocessing.from_dict(self.preprocessing)
        plan = plan.replace(num_frames=num_frames) if num_frames else plan
        is_one = isinstance(videos, (str, Path)) or (isinstance(videos, (np.ndarray, Tensor)) and videos.ndim == 4)
        clips = [_pixels(video, plan) for video in ([videos] if is_one else cast(Sequence[Any], videos))]
        return BatchFeature({"pixel_values": torch.stack(clips).float() / 255})

    def to_dict(self) -> dict[str, Any]:
        """The content of the processor's file."""
        return {"video_processor_type": PROCESSOR_TYPE, "preprocessing": self.preprocessing}

    def to_json_string(self) -> str:
        """The same as JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, video_processor_dict: dict[str, Any], **_: Any) -> TRecViTVideoProcessor:
        """Inverse of `to_dict`."""
        return cls(preprocessing=video_processor_dict.get("preprocessing"))


def _names(config: TRecViTConfig) -> tuple[str, ...]:
    """The names of the classes; none if they are transformers' own, "LABEL_0" and so on, or cannot be saved."""
    names = [config.id2label[index] for index in range(config.num_labels)]
    own = any(name != f"LABEL_{index}" for index, name in enumerate(names))
    return check_labels(names) if own and not any(map(why_no_label, names)) else ()


def _pixels(video: Any, plan: Preprocessing) -> Tensor:
    if isinstance(video, (str, Path)):
        with open_video(video) as source:
            clips, _ = read_clips(source, plan, 1)
        return clips[0]
    if isinstance(video, Tensor):
        video = video.movedim(1, -1).cpu().numpy() if video.ndim == 4 else video.cpu().numpy()
    return to_clip(np.asarray(video), plan.image_size)


AutoConfig.register(TRecViTConfig.model_type, TRecViTConfig)
AutoModelForVideoClassification.register(TRecViTConfig, TRecViTForVideoClassification)
AutoVideoProcessor.register(TRecViTConfig, TRecViTVideoProcessor)

__all__ = ["PROCESSOR_FILE", "TRecViTConfig", "TRecViTForVideoClassification", "TRecViTVideoProcessor"]
