"""On-disk cache of a frozen encoder's features, computed once per view of each video, for probes.

A folder holds `key.json`, which identifies encoder and data, and shards of `SHARD` videos each: safetensors with
`tokens` float16 [M, views, T, N, D], their means over space `per_frame` float32 [M, views, T, D], and the videos' rows.
Shards are written atomically, so an interrupted run resumes; a folder with a different key is refused.
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
    """A frozen network to be probed.

    Attributes:
        name: Name that the user gave.
        network: The network, frozen.
        description: Its architecture as plain JSON values.
        preprocessing: Clip length, rate and size that it expects.
        features: Function from clips uint8 `[B,F,3,H,W]` to tokens `[B,T,N,D]`; T may be less than F.
    """

    name: str
    network: nn.Module
    description: dict[str, Any]
    preprocessing: Preprocessing
    features: Callable[[Tensor], Tensor]

    @property
    def num_parameters(self) -> int:
        """Parameters of the network."""
        return sum(parameter.numel() for parameter in self.network.parameters())


def trecvit_encoder(model: TRecViT, name: str) -> Encoder:
    """Make an encoder of a TRecViT; its head is dropped."""
    backbone = TRecViT(model.config.replace(num_classes=0), preprocessing=model.preprocessing)
    backbone.load_state_dict({key: value for key, value in model.state_dict().items() if not key.startswith("head.")})
    backbone = backbone.to(model.device, model.dtype).eval().requires_grad_(False)

    def features(video: Tensor) -> Tensor:
        tokens: Tensor = backbone(video.to(backbone.device)).features
        return tokens

    return Encoder(name, backbone, backbone.config.to_dict(), model.preprocessing, features)


@dataclass(frozen=True)
class Features:
    """Features of all views of M videos.

    Attributes:
        names: As in the manifest.
        classes: The true classes.
        per_frame: Means over space of the tokens of each time step.
    """

    names: tuple[str, ...]
    classes: Int64[Tensor, " M"]
    per_frame: Float[Tensor, "M views T D"]
    _shards: tuple[tuple[Path, int], ...]  # each file, and the row of its first video

    def tokens(self, rows: Sequence[int], view: int) -> Float[Tensor, "m T N D"]:
        """Read all tokens of one view of some videos as float32."""
        by_row: dict[int, Tensor] = {}
        for shard, (path, first) in enumerate(self._shards):
            end = self._shards[shard + 1][1] if shard + 1 < len(self._shards) else len(self.names)
            here = [row for row in rows if first <= row < end]
            if here:
                with safetensors.safe_open(path, framework="pt") as file:
                    tokens = file.get_slice("tokens")
                    by_row |= {row: tokens[row - first : row - first + 1, view : view + 1][0, 0] for row in here}
        return torch.stack([by_row[row] for row in rows]).float()


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
    """Read the features of all labelled videos from the folder; compute and write the missing shards.

    Args:
        encoder: The frozen encoder.
        manifest: The videos.
        folder: Folder of these features alone.
        num_clips: Clips of each video, spread evenly over it, as in `evaluate_videos`.
        num_crops: Crops of each clip, 1 or 3.
        num_workers: Worker processes that decode.
        report: Called with the number of videos done, and of those that failed.

    Returns:
        The features, and the unreadable videos.

    Raises:
        DataError: when the folder holds other features, or no video is readable.
    """
    folder = Path(folder)
    check_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    labelled = with_class(manifest)
    _claim(folder, _key(encoder, manifest, labelled, num_clips, num_crops))
    views = EvaluationViews(manifest, encoder.preprocessing, num_clips=num_clips, num_crops=num_crops)
    paths = [folder / f"shard-{first // SHARD:05d}.safetensors" for first in range(0, len(labelled), SHARD)]
    missing = [shard for shard, path in enumerate(paths) if not path.exists()]
    items = load_items(
        Subset(views, [row for shard in missing for row in labelled[shard * SHARD : (shard + 1) * SHARD]]),
        batch_size=None,
        num_workers=num_workers,
    )
    done = failed = 0
    for shard, path in enumerate(paths):
        rows = labelled[shard * SHARD : (shard + 1) * SHARD]
        if shard not in missing:
            done += len(rows)
            continue
        computed: list[tuple[int, Tensor]] = []
        failures: dict[str, str] = {}
        for row in rows:
            item = next(items)
            if isinstance(item, Failure):
                failures[item.name] = item.reason
            else:
                # One view at a time, so that memory depends on the encoder alone.
                computed.append((row, torch.cat([encoder.features(view[None]).float().cpu() for view in item.pixels])))
            done, failed = done + 1, failed + isinstance(item, Failure)
            report(done, failed)
        _write_shard(path, computed, failures)
    return _read(paths, manifest)


def _key(encoder: Encoder, manifest: Manifest, rows: Sequence[int], num_clips: int, num_crops: int) -> dict[str, Any]:
    """Describe everything that the features depend on, as plain JSON values."""
    videos = hashlib.sha256()
    for row in rows:
        video = manifest.videos[row]
        videos.update(f"{video.name}\0{video.label}\0{video.num_bytes}\n".encode("utf-8", "surrogatepass"))
    return {
        "encoder": encoder.description,
        "weights_sha256": hash_of_weights(encoder.network),
        "preprocessing": encoder.preprocessing.to_dict(),
        "clips": num_clips,
        "crops": num_crops,
        "videos": len(rows),
        "videos_sha256": videos.hexdigest(),
        "label_map_sha256": label_hash(manifest.labels),
        "means": "over space",  # older folders: over all tokens
        "shard": SHARD,
        "decoder": f"PyAV {version('av')}",
    }


def _claim(folder: Path, key: dict[str, Any]) -> None:
    path = folder / "key.json"
    if not path.exists():
        write_text(path, json.dumps(key, indent=1) + "\n")
        return
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name in key if stored.get(name) != key[name]]
    except (ValueError, AttributeError) as exc:
        raise DataError(f"{path}: expected the key of the features beside it: {exc}") from exc
    if differing:
        raise DataError(
            f"{folder}: expected features of this encoder and data, got others ({', '.join(differing)} differ); remove "
            "the folder or name another"
        )


def _write_shard(path: Path, computed: Sequence[tuple[int, Tensor]], failures: dict[str, str]) -> None:
    empty = torch.zeros(0)
    tensors = {
        "rows": torch.tensor([row for row, _ in computed], dtype=torch.int64),
        "tokens": torch.stack([tokens for _, tokens in computed]).half() if computed else empty,
        "per_frame": torch.stack([tokens.mean(dim=2) for _, tokens in computed]) if computed else empty,
    }
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise DataError(
            f"{path}: expected finite half-precision features, got NaN or infinity; the weights may be damaged"
        )
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
            raise DataError(f"{path}: expected a shard of features; remove it to recompute it ({exc})") from exc
    refuse_if_none(rows, manifest, failures)
    videos = [manifest.videos[row] for row in rows]
    classes = torch.tensor([video.label for video in videos])
    names = tuple(video.name for video in videos)
    return Features(names, classes, torch.cat(per_frame), tuple(shards)), failures
