"""Model cards: a README with the YAML front matter that the Hugging Face Hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

_LICENCES = {"apache-2.0": "apache-2.0", "mit": "mit", "cc-by 4.0": "cc-by-4.0", "cc-by-4.0": "cc-by-4.0"}  # the Hub's
_MAX_CLASSES = 30  # listed in a card
_USES = {
    "TRecViT": """import trecvit

model = trecvit.TRecViT.from_pretrained("{name}")
out = model(video)                       # video: [B,T,3,H,W], uint8 or in [0,1]; out.probs [B,V]
state = model.init_state(batch_size=1)
out, state = model.step(frames, state)   # the same, frame by frame""",
    "tracker": """import trecvit

tracker = trecvit.{kind}.from_pretrained("{name}")
out = tracker(video, query_points_tyx)   # points_xy [B,Q,T,2], visible [B,Q,T]""",
    "other": """import trecvit.model.mae

model = trecvit.model.mae.{kind}.from_pretrained("{name}")""",
}
_TRACKERS = ("TAPNext", "ReadoutTracker")


class Measured(NamedTuple):
    """A measured figure of a model.

    Attributes:
        metric: Its name on the Hub, such as "accuracy".
        name: Its name for people, such as "top-1".
        value: From 0 to 1.
        dataset: Name of the data that it was measured on.
    """

    metric: str
    name: str
    value: float
    dataset: str


def model_card(
    kind: str,
    description: Mapping[str, Any],
    *,
    tags: Sequence[str],
    name: str = "",
    results: Sequence[Measured] = (),
    pictures: Sequence[str] = (),
) -> ModelCard:
    """Write the card of a model.

    Args:
        kind: Name of the model's class.
        description: As `Pretrained.description` returns it.
        tags: For the Hub's search.
        name: The repository, "owner/name", or "" while it is not known.
        results: What was measured on it.
        pictures: Files of the repository to show.
    """
    classes, provenance = description["labels"], dict(description["provenance"])
    task = _task(kind, len(classes))
    licence = provenance.get("licence", "")
    data = ModelCardData(
        license=_LICENCES.get(licence.lower(), "other") if licence else None,
        license_name=licence if licence and licence.lower() not in _LICENCES else None,
        library_name="trecvit",
        pipeline_tag=task,
        tags=sorted({*tags, "trecvit", *(["point-tracking"] if kind in _TRACKERS else [])}),
        model_name=name.split("/")[-1] or "trecvit",
        eval_results=[_eval_result(task or "point-tracking", measured) for measured in results] or None,
    )
    use = _USES.get(kind) or _USES["tracker" if kind in _TRACKERS else "other"]
    frames = description["preprocessing"]
    height, width = frames["image_size"]
    rate = (
        f"at {frames['frame_rate_fps']:g} frames/s" if frames["frame_rate_fps"] else f"every {frames['frame_stride']}"
    )
    parts = [
        f"# {name or kind}",
        "A [TRecViT](https://arxiv.org/abs/2412.14294) in PyTorch: a causal video transformer that trains on clips and "
        "streams frame by frame.",
        f"Input: clips of {frames['num_frames']} frames of {height} × {width} pixels, {rate}.",
        f"```python\n{use.format(kind=kind, name=name or 'FOLDER')}\n```",
    ]
    if task:
        parts.append(
            "With transformers (`pip install 'trecvit[hf]'`):\n\n```python\nimport trecvit.hf\n"
            f'from transformers import pipeline\n\npipeline("{task}", model="{name or "FOLDER"}")("video.mp4")\n```'
        )
    if results:
        rows = [f"| {item.dataset} | {item.name} | {item.value:.1%} |" for item in results]
        parts.append("\n".join(["## Measured", "", "| data | metric | value |", "|---|---|---|", *rows]))
    parts += [f"![{picture}]({picture})" for picture in pictures]
    if classes:
        more = f" and {len(classes) - _MAX_CLASSES} more" if len(classes) > _MAX_CLASSES else ""
        parts.append(f"## Classes\n\n{', '.join(classes[:_MAX_CLASSES])}{more}.")
    if provenance:
        parts.append("## Origin\n\n" + "\n".join(f"- {key}: {value}" for key, value in provenance.items()))
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


def _task(kind: str, num_classes: int) -> str | None:
    return "video-classification" if kind == "TRecViT" and num_classes else None


def _eval_result(task: str, measured: Measured) -> EvalResult:
    return EvalResult(
        task_type=task,
        dataset_type=measured.dataset,
        dataset_name=measured.dataset,
        metric_type=measured.metric,
        metric_name=measured.name,
        metric_value=round(measured.value, 4),
    )
