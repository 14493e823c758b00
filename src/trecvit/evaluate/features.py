"""Features of a frozen encoder, computed once per view of each video and kept on disk for the probes.

A folder holds `key.json`, which says what the features are of, and shards of `SHARD` videos each: safetensors with
`tokens` float16 [M, views, T, N, D], their means over space `per_frame` float32 [M, views, T, D], and which videos they
are of. A shard is whole or not there, so that an interrupted run goes on; a folder whose key says something else is
refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.data import Subset

from trecvit.config import Preprocessing
from trecvit.data.class_names import label_hash
from trecvit.data.clips import EvaluationViews, Failure
from trecvit.data.manifest import Manifest
from trecvit.errors import DataError
from trecvit.evaluate.videos import hash_of_weights, refuse_if_none, with_class
from trecvit.files import write_text, write_whole
from trecvit.model.trecvit import TRecViT
from trecvit.pretrained import check_path
from trecvit.workers import load_items

SHARD = 64


@dataclass(frozen=True)
class Encoder:
    """What is probed.

    Attributes:
        name: As the user named it.
        network: Whose weights make the features; nothing trains them.
        description: Its architecture as plain JSON values.
        preprocessing: What it expects of videos.
        features: Tokens `[B, T, N, D]` of clips uint8 `[B, F, 3, H, W]`; T may be less than F.
    """

    name: str
    network: nn.Module
    description: dict[str, Any]
    preprocessing: Preprocessing
    features: Callable[[Tensor], Tensor]

    @property
    def num_parameters(self) -> int:
        """Of the network."""
        return sum(parameter.numel() for parameter in self.network.parameters())


def trecvit_encoder(model: TRecViT, name: str) -> Encoder:
    """A TRecViT without its head, which the features do not see."""
    backbone = TRecViT(model.config.replace(num_classes=0), preprocessing=model.preprocessing)
    backbone.load_state_dict({key: value for key, value in model.state_dict().items() if not key.startswith("head.")})
    backbone = backbone.to(model.device, model.dtype).eval().requires_grad_(False)

    def features(video: Tensor) -> Tensor:
        tokens: Tensor = backbone(video.to(backbone.device)).features
        return tokens

    return Encoder(name, backbone, backbone.config.to_dict(), model.preprocessing, features)


@dataclass(frozen=True)
class Features:
    """Features of M videos in so many views each.

    Attributes:
        names: As in the manifest.
        classes: The right class of each.
        per_frame: Means over space of each of a view's T rows of tokens.
    """

    names: tuple[str, ...]
    classes: Int64[Tensor, " M"]
    per_frame: Float[Tensor, "M views T D"]
    _shards: tuple[tuple[Path, int], ...]  # each file, and the number of its first video

    def tokens(self, rows: Sequence[int], view: int) -> Float[Tensor, "m T N D"]:
        """All tokens of one view of some videos, float32, from the disk."""
        read: dict[int, Tensor] = {}
        for shard, (path, first) in enumerate(self._shards):
            end = self._shards[shard + 1][1] if shard + 1 < len(self._shards) else len(self.names)
            wanted = [row for row in rows if first <= row < end]
            if wanted:
                with safetensors.safe_open(path, framework="pt") as file:
                    tokens = file.get_slice("tokens")
                    read |= {row: tokens[row - first : row - first + 1, view : view + 1][0, 0] for row in wanted}
        return torch.stack([read[row] for row in rows]).float()


@torch.inference_mode()
def cached_features(
    encoder: Encoder,
    manifest: Manifest,
    folder: str | Path,
    *,
    num_clips: int = 1,
    num_crops: int = 1,
    num_workers: int = 0,
    report: Callable[[int, int], None] = lambda *_: None,
) -> tuple[Features, list[Failure]]:
    """The features of every video of a manifest that has a class: read from the folder, or computed and written there.

    Args:
        encoder: What makes them.
        manifest: The videos.
        folder: Of these features and no others.
        num_clips: Clips of each video, spread evenly over it; as in `evaluate_videos`.
        num_crops: Crops of each clip, 1 or 3.
        num_workers: Processes that decode.
        report: Called with the number of videos done, and how many of them failed.

    Returns:
        The features, and the videos that could not be read.

    Raises:
        DataError: When the folder holds other features, or not one video could be read.
    """
    folder = Path(folder)
    check_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = with_class(manifest)
    _claim(folder, _key(encoder, manifest, wanted, num_clips, num_crops))
    views = EvaluationViews(manifest, encoder.preprocessing, num_clips=num_clips, num_crops=num_crops)
    paths = [folder / f"shard-{first // SHARD:05d}.safetensors" for first in range(0, len(wanted), SHARD)]
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    items = load_items(
        Subset(views, [row for shard in missing for row in wanted[shard * SHARD : (shard + 1) * SHARD]]),
        batch_size=None,
        num_workers=num_workers,
    )
    done = failed = 0
    for number, path in enumerate(paths):
        rows = wanted[number * SHARD : (number + 1) * SHARD]
        if number not in missing:
            done += len(rows)
            continue
        found: list[tuple[int, Tensor]] = []
        failures: dict[str, str] = {}
        for row in rows:
            item = next(items)
            if isinstance(item, Failure):
                failures[item.name] = item.reason
            else:
                # A view at a time: what they need together depends on nothing but the encoder.
                found.append((row, torch.cat([encoder.features(view[None]).float().cpu() for view in item.pixels])))
            done, failed = done + 1, failed + isinstance(item, Failure)
            report(done, failed)
        _write_shard(path, found, failures)
    return _read(paths, manifest)


def _key(encoder: Encoder, manifest: Manifest, wanted: Sequence[int], num_clips: int, num_crops: int) -> dict[str, Any]:
    """Everything that the features depend on, as plain JSON values."""
    videos = hashlib.sha256()
    for number in wanted:
        video = manifest.videos[number]
        videos.update(f"{video.name}\0{video.label}\0{video.num_bytes}\n".encode("utf-8", "surrogatepass"))
    return {
        "encoder": encoder.description,
        "weights_sha256": hash_of_weights(encoder.network),
        "preprocessing": encoder.preprocessing.to_dict(),
        "clips": num_clips,
        "crops": num_crops,
        "videos": len(wanted),
        "videos_sha256": videos.hexdigest(),
        "label_map_sha256": label_hash(manifest.labels),
        "means": "over space",  # in older folders over all tokens
        "shard": SHARD,
        "decoder": f"PyAV {version('av')}",
    }


def _claim(folder: Path, key: dict[str, Any]) -> None:
    path = folder / "key.json"
    if not path.exists():
        write_text(path, json.dumps(key, indent=1) + "\n")
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name in key if found.get(name) != key[name]]
    except (ValueError, AttributeError) as exc:
        raise DataError(f"{path}: expected what the features beside it are of: {exc}") from exc
    if differing:
        raise DataError(
            f"{folder} holds features of something else ({', '.join(differing)} differ); remove it or name another"
        )


def _write_shard(path: Path, found: Sequence[tuple[int, Tensor]], failures: dict[str, str]) -> None:
    nothing = torch.zeros(0)
    tensors = {
        "rows": torch.tensor([row for row, _ in found], dtype=torch.int64),
        "tokens": torch.stack([tokens for _, tokens in found]).half() if found else nothing,
        "per_frame": torch.stack([tokens.mean(dim=2) for _, tokens in found]) if found else nothing,
    }
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise DataError(f"{path}: some features are no finite half-precision numbers; the weights may be damaged")
    metadata = {"failures": json.dumps(failures)}
    write_whole(path, lambda part: safetensors.torch.save_file(tensors, part, metadata))


def _read(paths: Sequence[Path], manifest: Manifest) -> tuple[Features, list[Failure]]:
    rows: list[int] = []
    per_frame: list[Tensor] = []
    shards: list[tuple[Path, int]] = []
    failures: list[Failure] = []
    for path in paths:
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                failed = json.loads(file.metadata()["failures"])
                failures += [Failure(name, reason) for name, reason in failed.items()]
                own: list[int] = file.get_tensor("rows").tolist()
                if own:
                    shards.append((path, len(rows)))
                    rows += own
                    per_frame.append(file.get_tensor("per_frame"))
        except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError) as exc:
            raise DataError(f"{path}: damaged; remove it and it will be computed again ({exc})") from exc
    refuse_if_none(rows, manifest, failures)
    videos = [manifest.videos[row] for row in rows]
    classes = torch.tensor([video.label for video in videos])
    names = tuple(video.name for video in videos)
    return Features(names, classes, torch.cat(per_frame), tuple(shards)), failures
