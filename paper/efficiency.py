"""Costs of video models over video length: the paper's Figures 3 and 5 and the cost columns of its Table 3.

Costs are counted on fake tensors, so a laptop can count a model that needs half a terabyte. Operations are PyTorch's
count of matrix multiplications, two per multiply-add; memory is the peak of all live tensors in float32 (weights,
gradients, activations). XLA, which the paper used, fuses and counts a little differently.

Only the first turns of the RG-LRU's loop over frames are counted: it has no matrix multiplication, and each turn
allocates and frees the same memory (`tests/test_study.py` checks this against whole loops). The LSTM's loop is counted
in full, with PyTorch's own operations, because its fused kernel hides them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode

from paper.results import empty_figure
from paper.video_transformers import FACTORISED_ENCODER, NAMES, build_baseline
from trecvit.config import TemporalMixer, model_config
from trecvit.model.lru import RGLRU
from trecvit.model.scan import gated_scan
from trecvit.model.trecvit import SpatialBlock, TRecViT

OURS = "TRecViT-B"
OUR_BLOCKS: dict[str, TemporalMixer] = {OURS: "lru", "ViT-LSTM": "lstm", "ViT-Conv1D": "conv"}
MODELS = (*OUR_BLOCKS, *NAMES)
IMAGE_PX = 224
TRAINING_FRAMES = (8, 16, 24, 32, 40, 48, 56, 64)  # as in the paper's figures
FRAMES = (*TRAINING_FRAMES, 128, 256, 512, 1024)
_FRAMES_FOLLOWED = 3  # turns of the RG-LRU's loop: the first differs, and the third reuses all memory
_CLASSES = 174  # Something-Something-v2, as in the paper's Table 3

# The paper's Table 3: parameters in millions, TFLOP and GB of inference; its text: ratios to ViViT-L in Figure 3.
PAPER: dict[tuple[str, int], tuple[float, float, float]] = {
    ("ViViT-L", 32): (310.8, 7.75, 6.11),
    (OURS, 32): (111.3, 1.44, 1.79),
    (OURS, 64): (111.3, 2.89, 3.16),
}
PAPER_RATIOS = {32: (12.0, 5.0), 64: (24.0, 8.0)}  # memory and operations of ViViT-L over ours


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Cost of one clip, batch size 1.

    Attributes:
        model: Name in `MODELS`.
        num_frames: Frames of 224 x 224.
        parameters: Number of weights.
        inference_flop: Operations of a forward pass.
        training_flop: Operations of a forward and a backward pass; None if not counted.
        inference_bytes: Peak memory of a forward pass, weights included, with materialised attention maps.
        fused_inference_bytes: The same with fused attention, which materialises no map.
        training_bytes: Peak memory of a training step, weights and gradients included, with materialised maps.
        fused_training_bytes: The same with fused attention.
    """

    model: str
    num_frames: int
    parameters: int
    inference_flop: int
    training_flop: int | None
    inference_bytes: int
    fused_inference_bytes: int
    training_bytes: int | None
    fused_training_bytes: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameCost:
    """Cost of one new frame of an endless video.

    Attributes:
        model: Name in `MODELS`.
        window: Frames processed for each new frame; 1 for a model with a state.
        flop: Operations per new frame.
        kept_bytes: Size of the memory: the state, or the window's frames as uint8.
    """

    model: str
    window: int
    flop: int
    kept_bytes: int


def costs(
    models: Sequence[str] = MODELS,
    frames: Sequence[int] = FRAMES,
    *,
    training: bool = True,
    report: Callable[[int], None] = lambda _: None,
) -> Iterator[Cost]:
    """Count every model at every length.

    Args:
        models: Names in `MODELS`.
        frames: Lengths.
        training: Whether to count training steps too, up to the longest of `TRAINING_FRAMES`.
        report: Called with the number of costs so far.
    """
    for done, (name, num_frames) in enumerate(product(models, frames), start=1):
        yield cost(name, num_frames, training=training and num_frames <= max(TRAINING_FRAMES))
        report(done)


def cost(name: str, num_frames: int, *, training: bool = True) -> Cost:
    """Count one model at one length."""
    plain, fused = (_counted(name, num_frames, fused, training) for fused in (False, True))
    return Cost(
        model=name,
        num_frames=num_frames,
        parameters=plain.parameters,
        inference_flop=plain.inference[0],
        training_flop=plain.training[0] if plain.training else None,
        inference_bytes=plain.inference[1],
        fused_inference_bytes=fused.inference[1],
        training_bytes=plain.training[1] if plain.training else None,
        fused_training_bytes=fused.training[1] if fused.training else None,
    )


def frame_costs(counted: Sequence[Cost]) -> list[FrameCost]:
    """Count each new frame of a video: one step with a state for streaming models, and the whole window again for all.

    The factorised encoder is left out, because it could reuse its features of earlier frames.
    """
    pixels = 3 * IMAGE_PX * IMAGE_PX
    windows = [
        FrameCost(
            model=clip.model, window=clip.num_frames, flop=clip.inference_flop, kept_bytes=pixels * clip.num_frames
        )
        for clip in counted
        if clip.model != FACTORISED_ENCODER
    ]
    streaming = list(dict.fromkeys([OURS, *(clip.model for clip in counted if clip.model in OUR_BLOCKS)]))
    return [*(_streamed(name) for name in streaming), *windows]


def _streamed(name: str) -> FrameCost:
    with torch.device("meta"):
        state = TRecViT(model_config("base", num_classes=_CLASSES, temporal_mixer=OUR_BLOCKS[name])).init_state(1)
    flop = cost(name, 1, training=False).inference_flop
    return FrameCost(model=name, window=1, flop=flop, kept_bytes=state.nbytes)


def to_dict(counted: Sequence[Cost], per_frame: Sequence[FrameCost]) -> dict[str, Any]:
    """Convert to plain JSON values."""
    return {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "image_px": IMAGE_PX,
        "costs": [asdict(clip) for clip in counted],
        "per_new_frame": [asdict(frame) for frame in per_frame],
        "paper": [
            {"model": model, "num_frames": num_frames, "parameters_m": parameters, "tflop": tflop, "gb": gigabytes}
            for (model, num_frames), (parameters, tflop, gigabytes) in PAPER.items()
        ],
        "paper_ratios": [
            {"num_frames": num_frames, "memory": memory, "operations": operations}
            for num_frames, (memory, operations) in PAPER_RATIOS.items()
        ],
    }


def draw(counted: Sequence[Cost], folder: Path) -> list[Path]:
    """Draw operations and memory over the number of frames, as `efficiency.png` and `.svg`.

    Above: to 64 frames, on the paper's linear axes. Below: all lengths, on logarithmic axes.
    """
    figure = empty_figure(19, 9.6)
    from matplotlib import rc_context

    short: list[_Panel] = [
        ("TFLOP, forward", "inference_flop", 1e12),
        ("TFLOP, forward and backward", "training_flop", 1e12),
        ("peak memory of a training step, GB\nattention maps materialised", "training_bytes", 1e9),
        ("peak memory of a training step, GB\nfused attention", "fused_training_bytes", 1e9),
    ]
    long: list[_Panel] = [
        ("TFLOP, forward", "inference_flop", 1e12),
        ("peak memory of inference, GB\nattention maps materialised", "inference_bytes", 1e9),
        ("peak memory of inference, GB\nfused attention", "fused_inference_bytes", 1e9),
    ]
    above, below = figure.subplots(2, len(short))
    for axes, panel in zip(above, short, strict=True):
        _plot(axes, [clip for clip in counted if clip.num_frames <= max(TRAINING_FRAMES)], panel)
        axes.set_ylim(bottom=0)
    for axes, panel in zip(below[:-1], long, strict=True):
        _plot(axes, counted, panel)
        axes.set(xscale="log", yscale="log")
        ticks = sorted({clip.num_frames for clip in counted if clip.num_frames.bit_count() == 1})
        axes.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        axes.minorticks_off()
    below[-1].axis("off")
    below[-1].legend(*below[0].get_legend_handles_labels(), loc="center", fontsize=11)
    written = [folder / f"efficiency.{suffix}" for suffix in ("png", "svg")]
    with rc_context({"svg.hashsalt": "efficiency"}):  # the same file for the same figures
        figure.savefig(written[0], dpi=90)
        figure.savefig(written[1], metadata={"Date": None})
    return written


_Panel = tuple[str, str, float]  # title, field of a `Cost`, unit


def _plot(axes: Any, counted: Sequence[Cost], panel: _Panel) -> None:
    title, field, unit = panel
    for index, name in enumerate(dict.fromkeys(clip.model for clip in counted)):
        clips = [clip for clip in counted if clip.model == name and getattr(clip, field) is not None]
        heights = [getattr(clip, field) / unit for clip in clips]
        width = 3.0 if name == OURS else 1.5
        frames = [clip.num_frames for clip in clips]
        line = "--" if name in OUR_BLOCKS and name != OURS else "-"
        axes.plot(frames, heights, line, color=f"C{index}", linewidth=width, marker="o", ms=3, label=name)
    axes.set(xlabel="frames", title=title)
    axes.grid(alpha=0.3)


class _Counted(NamedTuple):
    parameters: int
    inference: tuple[int, int]  # operations, 0 with fused attention, and peak bytes
    training: tuple[int, int] | None


def _counted(name: str, num_frames: int, fused: bool, training: bool) -> _Counted:
    model = _without_weights(name, num_frames, fused)
    ours = isinstance(model, TRecViT)
    with _plain_lstm(), FakeTensorMode(allow_non_fake_inputs=True):
        _give_empty_weights(model)
        video = torch.zeros(1, num_frames, 3, IMAGE_PX, IMAGE_PX, dtype=torch.uint8 if ours else torch.float32)

        def forward() -> None:
            with torch.no_grad():
                model(video)

        def update() -> None:
            out = model(video)
            output = out.logits if ours else out if isinstance(out, Tensor) else out.last_hidden_state
            output.float().sum().backward()

        # PyTorch has no count for its fused attention on CPUs, which makes the same multiplications.
        inference = (0 if fused else _operations(model.eval(), forward), _peak_bytes(model.eval(), forward))
        both = None
        if training:
            both = (0 if fused else _operations(model.train(), update), _peak_bytes(model.train(), update))
        return _Counted(sum(parameter.numel() for parameter in model.parameters()), inference, both)


def _operations(model: nn.Module, run: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    model.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


def _peak_bytes(model: nn.Module, run: Callable[[], None]) -> int:
    tracker = MemTracker()
    tracker.track_external(model)
    with tracker:
        run()
    model.zero_grad(set_to_none=True)
    peak = tracker.get_tracker_snapshot("peak")
    return int(sum(kinds["Total"] for kinds in peak.values()))


def _without_weights(name: str, num_frames: int, fused: bool) -> nn.Module:
    with torch.device("meta"):
        if name in OUR_BLOCKS:
            model = TRecViT(model_config("base", num_classes=_CLASSES, temporal_mixer=OUR_BLOCKS[name]))
            for module in model.modules():
                if fused and isinstance(module, SpatialBlock):
                    module.max_plain_tokens = 0
                if isinstance(module, RGLRU) and num_frames > _FRAMES_FOLLOWED:
                    module.__class__ = _ShortLoop
            return model
        return build_baseline(name, image_size=IMAGE_PX, num_frames=num_frames, fused=fused)


def _give_empty_weights(model: nn.Module) -> None:
    """Replace a meta model's weights by fake ones; initial values cannot be drawn without content."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype)))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))


@contextmanager
def _plain_lstm() -> Iterator[None]:
    """Run LSTMs as loops of countable matrix multiplications, not as oneDNN's kernel."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of oneDNN's settings for GPUs
        with torch.backends.mkldnn.flags(enabled=False):
            yield


class _ShortLoop(RGLRU):
    """An RG-LRU that computes only the first frames, in memory for all."""

    def forward(
        self, x: Float[Tensor, "B T N E"], hidden: Float[Tensor, "B N E"], fresh: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B T N E"], Float[Tensor, "B N E"]]:
        """See `RGLRU.forward`."""
        gates = self.input_gate(x), self.a_gate(x)
        states: Tensor = _ShortScan.apply(x, *gates, self.a_param, hidden, fresh)  # type: ignore[no-untyped-call]
        return states.to(x.dtype), states[:, -1].clone()


class _ShortScan(torch.autograd.Function):
    """`gated_scan` with all its allocations, but with `_FRAMES_FOLLOWED` turns of its loops."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, input_gate: Tensor, recurrence_gate: Tensor, a_param: Tensor, hidden: Tensor, fresh: Tensor
    ) -> Tensor:
        first = slice(_FRAMES_FOLLOWED)
        states = torch.empty(x.shape, dtype=hidden.dtype, device=x.device)
        scanned = gated_scan(x[:, first], input_gate[:, first], recurrence_gate[:, first], a_param, hidden, fresh)
        states[:, first] = scanned[0]
        ctx.save_for_backward(x, input_gate, recurrence_gate, a_param, hidden, fresh, states)
        return states

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, input_gate, recurrence_gate, a_param, hidden, fresh, _ = ctx.saved_tensors
        first = slice(_FRAMES_FOLLOWED)
        grads = [torch.empty_like(sequence) for sequence in (x, input_gate, recurrence_gate)]
        inputs = [x[:, first], input_gate[:, first], recurrence_gate[:, first], a_param, hidden]
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        with torch.enable_grad():
            states, _ = gated_scan(inputs[0], inputs[1], inputs[2], inputs[3], inputs[4], fresh)
        *of_sequences, of_a_param, of_hidden = torch.autograd.grad(states, inputs, grad_outputs[0][:, first])
        for grad, part in zip(grads, of_sequences, strict=True):
            grad[:, first] = part
        return (*grads, of_a_param, of_hidden, None)
