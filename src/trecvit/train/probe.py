"""Probes on frozen features: logistic regression, nearest neighbours and an attention readout.

The attention readout on frozen features is the paper's (Table 5; Table 11: rate 3e-4, cosine after a linear warm-up).
The other two, and every value that the paper does not state, are choices and marked so.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from trecvit.data.clips import Failure
from trecvit.data.manifest import Manifest
from trecvit.draws import Stream, rng
from trecvit.errors import ConfigError, DataError
from trecvit.evaluate.features import Encoder, Features, cached_features
from trecvit.evaluate.scores import Scores, figures
from trecvit.files import only_writer, write_json
from trecvit.model.readouts import AttentionReadout
from trecvit.model.trecvit import TRecViT
from trecvit.train.optimise import schedule
from trecvit.train.sections import Optimisation

_RIDGE = 1e-3  # of the linear probe, on features of variance one: a choice
_PARTS = 8  # of a clip, separate inputs of the linear probe, so that it can use their order: a choice
_LBFGS_STEPS = 200
_NEIGHBOURS = 20  # and the temperature: those of DINO (arXiv:2104.14294), after Wu et al. 2018
_TEMPERATURE = 0.07


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbePlan:
    """Training of the probes.

    Attributes:
        epochs: Of the attention readout; each shows one view of every video (paper, Table 11: 30 on K400).
        batch_size: Clips per update; a choice.
        learning_rate: The peak (paper, Table 11).
        weight_decay: On matrices; a choice.
        width: Of the attention readout; 0: that of the features, as in V-JEPA's attentive probe. The paper does not
            state its own.
        num_clips: Clips of each video, in training and test.
        num_crops: Crops of each clip, 1 or 3.
        num_seeds: Number of repetitions of all randomised steps.
    """

    epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 3e-4
    weight_decay: float = 0.05
    width: int = 0
    num_clips: int = 1
    num_crops: int = 1
    num_seeds: int = 3

    def __post_init__(self) -> None:
        whole = (self.epochs, self.batch_size, self.num_clips, self.num_seeds)
        rates = 0 < self.learning_rate < math.inf and 0 <= self.weight_decay < math.inf
        if min(whole) < 1 or self.width < 0 or not rates:
            raise ConfigError(f"probe: expected epochs, batch_size, clips and seeds >= 1, a rate above 0; got {self}")


Report = Callable[[str, int, int], None]
"""Called with the name of a step, its progress and its total."""


# ---- the probes ----------------------------------------------------------------------------------------------------


def linear_probe(train: Features, test: Features, num_classes: int) -> Float[Tensor, "M C"]:
    """Probabilities by logistic regression on means of variance 1, in order; each training view is an example."""
    x, y = _in_order(train).flatten(0, 1), train.classes.repeat_interleave(train.per_frame.shape[1])
    mean, deviation = x.mean(dim=0), x.std(dim=0, correction=0) + 1e-6
    x = (x - mean) / deviation
    weight = torch.zeros(num_classes, x.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=x.dtype, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=_LBFGS_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss: Tensor = F.cross_entropy(F.linear(x, weight, bias), y) + _RIDGE / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    with torch.no_grad():
        logits = F.linear((_in_order(test) - mean) / deviation, weight, bias)
    return logits.softmax(dim=-1).mean(dim=1).float()


def _in_order(features: Features) -> Float[Tensor, "M views PD"]:
    """Concatenate means over space and each of `_PARTS` parts of the clip; of each frame if there are fewer."""
    frames = features.per_frame.double()
    parts: Tensor = F.adaptive_avg_pool1d(frames.transpose(2, 3).flatten(0, 1), min(_PARTS, frames.shape[2]))
    return parts.reshape(*frames.shape[:2], -1)


def knn_probe(train: Features, test: Features, num_classes: int) -> Float[Tensor, "M C"]:
    """Shares of the votes of the nearest training views by cosine, each with weight exp(cosine / temperature)."""
    bank = F.normalize(train.per_frame.mean(dim=2).flatten(0, 1), dim=-1)
    classes = F.one_hot(train.classes, num_classes).repeat_interleave(train.per_frame.shape[1], dim=0).float()
    queries = F.normalize(test.per_frame.mean(dim=2), dim=-1)
    cosines, nearest = (queries @ bank.T).topk(min(_NEIGHBOURS, len(bank)), dim=-1)
    votes = (((cosines - 1) / _TEMPERATURE).exp()[..., None] * classes[nearest]).sum(dim=2)
    return (votes / votes.sum(dim=-1, keepdim=True)).mean(dim=1)


def attention_probe(
    train: Features,
    test: Features,
    num_classes: int,
    plan: ProbePlan,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    report: Callable[[int, int], None] = lambda *_: None,
) -> Float[Tensor, "M C"]:
    """Probabilities by an `AttentionReadout` on all tokens, trained on a view of each video per epoch."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        readout = _readout(train, num_classes, plan).to(device)
    num_views, batches = train.per_frame.shape[1], -(-len(train.names) // plan.batch_size)
    num_steps = plan.epochs * batches
    rates = Optimisation(num_steps=num_steps, learning_rate=plan.learning_rate, warmup_steps=num_steps // 10)
    matrices = [weight for name, weight in readout.named_parameters() if weight.dim() >= 2 and name != "positions"]
    others = [weight for name, weight in readout.named_parameters() if weight.dim() < 2 or name == "positions"]
    groups = [
        {"params": matrices, "weight_decay": plan.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=plan.learning_rate)
    draws = rng(seed, Stream.PROBE)
    for step in range(num_steps):
        if step % batches == 0:
            order, view = draws.permutation(len(train.names)), int(draws.integers(num_views))
        rows = [int(row) for row in order[step % batches * plan.batch_size :][: plan.batch_size]]
        for group in optimiser.param_groups:
            group["lr"] = plan.learning_rate * schedule(step, rates, num_steps)
        loss = F.cross_entropy(readout(train.tokens(rows, view).to(device)), train.classes[rows].to(device))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        report(step + 1, num_steps)
    return _predict(readout.eval(), test, plan.batch_size, device)


@torch.inference_mode()
def _predict(
    readout: AttentionReadout, test: Features, batch_size: int, device: torch.device | str
) -> Float[Tensor, "M C"]:
    """Probabilities, averaged over the views."""
    probs = []
    for first in range(0, len(test.names), batch_size):
        rows = range(first, min(first + batch_size, len(test.names)))
        views = [readout(test.tokens(rows, view).to(device)) for view in range(test.per_frame.shape[1])]
        probs.append(torch.stack(views).softmax(dim=-1).mean(dim=0).cpu())
    return torch.cat(probs)


def _readout(features: Features, num_classes: int, plan: ProbePlan) -> AttentionReadout:
    """A readout with heads of about 64 channels."""
    num_frames, feature_width = features.per_frame.shape[2:]
    width = plan.width or feature_width
    num_heads = next(heads for heads in range(max(1, width // 64), 0, -1) if width % heads == 0)
    return AttentionReadout(feature_width, num_classes, num_frames=num_frames, width=width, num_heads=num_heads)


# ---- all probes ----------------------------------------------------------------------------------------------------


def probe(
    encoder: Encoder,
    fresh: Callable[[int], Encoder],
    train: Manifest,
    test: Manifest,
    folder: str | Path,
    plan: ProbePlan,
    *,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    report: Report = lambda *_: None,
) -> tuple[dict[str, Any], list[Failure]]:
    """Train and test all probes on the encoder's features and on random features of the same architecture.

    Args:
        encoder: The frozen encoder.
        fresh: The same with the random initial weights of a seed.
        train: Training videos.
        test: Test videos of the same classes.
        folder: For `features/`, a cache, and `probe.json`.
        plan: Training of the probes.
        num_workers: Decoding processes.
        device: Device of the attention readout.
        report: See `Report`.

    Returns:
        The content of `probe.json`, and the unreadable videos.

    Raises:
        BusyError: when another process writes to the folder.
        DataError: when the classes differ, or `features/` has other features.
    """
    if train.labels != test.labels:
        raise DataError(f"{train.source} and {test.source} do not have the same classes in the same order")
    folder = Path(folder)
    with only_writer(folder):
        num_classes = max(train.num_classes, test.num_classes)
        failures: dict[str, Failure] = {}
        results: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for kind, name, source, seeds in _runs(encoder, fresh, plan.num_seeds):
            both: dict[str, Features] = {}
            for split, manifest in (("train", train), ("test", test)):
                both[split], failed = cached_features(
                    source,
                    manifest,
                    folder / "features" / f"{name}-{split}",
                    num_clips=plan.num_clips,
                    num_crops=plan.num_crops,
                    num_workers=num_workers,
                    report=partial(_report_videos, report, f"features, {name}, {split}", len(manifest.videos)),
                )
                failures |= {f"{split}: {failure.name}": failure for failure in failed}
            for seed in seeds:
                advance = partial(report, f"attention readout, {kind}, seed {seed}")
                attention = partial(attention_probe, plan=plan, seed=seed, device=device, report=advance)
                for method, predict in (("linear", linear_probe), ("k-NN", knn_probe), ("attention", attention)):
                    started_s = time.perf_counter()
                    accuracy = _top1(both["test"], predict(both["train"], both["test"], num_classes))
                    results.setdefault((kind, method), []).append((accuracy, time.perf_counter() - started_s))
        result = {
            "protocol": _protocol(encoder, train, test, plan),
            "encoder_parameters": encoder.num_parameters,
            "attention_readout_parameters": sum(
                weight.numel() for weight in _readout(both["train"], num_classes, plan).parameters()
            ),
            "failed": [{"name": name, "reason": failure.reason} for name, failure in failures.items()],
            "rows": [_row(kind, method, values) for (kind, method), values in results.items()],
        }
        write_json(folder / "probe.json", result)
    return result, list(failures.values())


def _runs(
    encoder: Encoder, fresh: Callable[[int], Encoder], num_seeds: int
) -> Iterator[tuple[str, str, Encoder, Sequence[int]]]:
    """Yield kind and name of features, their encoder, and the seeds of the probes; one encoder at a time."""
    yield "pretrained", "pretrained", encoder, range(num_seeds)
    for seed in range(num_seeds):
        yield "random", f"random-{seed}", fresh(seed), [seed]


def _report_videos(report: Report, words: str, total: int, done: int, _failed: int) -> None:
    report(words, done, total)


def _row(kind: str, method: str, values: list[tuple[float, float]]) -> dict[str, Any]:
    top1 = [accuracy for accuracy, _ in values]
    return {
        "features": kind,
        "probe": method,
        "top1": top1,
        "mean": statistics.fmean(top1),
        "deviation": statistics.stdev(top1) if len(top1) > 1 else 0.0,
        "seconds_per_seed": round(statistics.fmean(seconds for _, seconds in values), 3),
    }


def fresh_trecvit(model: TRecViT, seed: int) -> TRecViT:
    """Copy the architecture with random initial weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TRecViT(model.config, preprocessing=model.preprocessing).to(model.device, model.dtype)


def _top1(test: Features, probs: Tensor) -> float:
    return float(figures(Scores(test.names, test.classes.numpy(), probs.numpy(), ()))["top1"])


def _protocol(encoder: Encoder, train: Manifest, test: Manifest, plan: ProbePlan) -> dict[str, Any]:
    return {
        "encoder": encoder.name,
        "architecture": encoder.description,
        "preprocessing": encoder.preprocessing.to_dict(),
        "train": train.source,
        "test": test.source,
        "plan": asdict(plan),
        "linear": f"logistic regression on means over space and parts of the clip ({_PARTS} at most), of variance "
        f"one, ridge {_RIDGE}, L-BFGS",
        "k-NN": f"{_NEIGHBOURS} neighbours by cosine of mean features, weights exp(cosine / {_TEMPERATURE})",
        "attention": "one learned query on all tokens, AdamW, linear warm-up over a tenth, cosine",
        "seeds": "of the attention readout, and of the weights that make the random features",
        "averaged": "probabilities over views",
        "trecvit": version("trecvit"),
        "torch": torch.__version__,
    }
