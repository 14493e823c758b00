"""Passes recorded as CUDA graphs, here by a recorder that repeats them into the same memory, as a graph does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from models import VARIANTS, random_video, relative_error, tiny_model, tiny_readout_tracker, tiny_tracker
from pretend_cuda import PretendCuda

from trecvit.accelerate import graphs
from trecvit.accelerate.graphs import GraphEngine
from trecvit.accelerate.optimize import optimize
from trecvit.errors import ConfigError
from trecvit.model import trecvit as trecvit_module
from trecvit.model.trecvit import attend

QUERIES = torch.tensor([[[0, 3.5, 20.25], [2, 30.0, 1.5], [0, 0.0, 32.0]]]).expand(3, -1, -1)
MODELS = {
    "classifier": (tiny_model, (16, 24)),
    "pairs of frames": (lambda: tiny_model(temporal_patch_size=2), (16, 24)),
    "tracker": (tiny_tracker, (32, 32)),
    "matching tracker": (lambda: tiny_tracker(matching=True), (32, 32)),
    "readout tracker": (tiny_readout_tracker, (32, 32)),
}


class Recorder:
    """Counts recordings; what it returns overwrites the first results."""

    def __init__(self):
        self.count = 0

    def __call__(self, run, device):
        self.count += 1
        fixed = run()

        def replay():
            for old, new in zip(graphs._tensors(fixed), graphs._tensors(run()), strict=True):
                old.copy_(new)

        return replay, fixed


def pair(kind):
    """A plain model, the same with an engine of graphs, its recorder, and their state and frames of three streams."""
    (make, size) = MODELS[kind]
    plain, fast, recorder = make(), make(), Recorder()
    fast.engine = GraphEngine(fast.engine, recorder)
    state = plain.init_state(QUERIES if "tracker" in kind else 3)
    return plain, fast, recorder, state, random_video(3, 6, *size)


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
def test_results_are_the_plain_models_and_stay(kind):
    plain, fast, recorder, state, video = pair(kind)
    states, kept = [state], []
    for frame in range(6):
        want, after = plain.step(video[:, frame : frame + 1], states[-1])
        got, mine = fast.step(video[:, frame : frame + 1], states[-1])
        for one, other in zip(graphs._tensors((got, mine)), graphs._tensors((want, after)), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
        states.append(mine)
        kept.append((list(graphs._tensors((got, mine))), [part.clone() for part in graphs._tensors((got, mine))]))
    for parts, copies in kept:  # no later step has written to them
        for part, copied in zip(parts, copies, strict=True):
            torch.testing.assert_close(part, copied, rtol=0, atol=0, equal_nan=True)
    again, _ = fast.step(video[:, 2:3], states[2])
    assert all(torch.equal(*both) for both in zip(graphs._tensors(again), kept[2][0], strict=False))
    fewer, _ = fast.step(video[:2, 2:3], states[2].select([0, 1]))
    torch.testing.assert_close(fewer[0], again[0][:2])
    # A graph for three streams and one for two; the frame of a pair that waits for the other is not computed.
    assert recorder.count == (1 if kind == "pairs of frames" else 2)


@torch.no_grad()
def test_what_a_pass_hands_on_is_the_callers_tensor():
    _, fast, _, state, video = pair("tracker")
    _, after = fast.step(video[:, :1], state)
    assert after.query_frames is state.query_frames
    assert after.query_points_yx is state.query_points_yx
    assert after.frames_seen is not state.frames_seen


def test_a_state_keeps_the_configuration_of_its_own_model():
    _, fast, recorder, state, video = pair("classifier")
    fast.step(video[:, :1], state)
    other = tiny_model(num_classes=7).init_state(3)
    assert fast.step(video[:, :1], other)[1].config.num_classes == 7
    assert recorder.count == 1


@pytest.mark.parametrize("first", [False, True])
def test_inference_mode_may_come_and_go(first):
    plain, fast, _, state, video = pair("classifier")
    for frame, mode in enumerate((first, not first, first)):
        with torch.inference_mode(mode):
            out, state = fast.step(video[:, frame : frame + 1], state)
        assert not out.logits.is_inference()
    assert relative_error(out.logits, plain(video[:, :3]).logits) < 1e-5


@torch.no_grad()
def test_long_clips_and_no_streams_are_not_recorded():
    plain, fast, recorder, _, _ = pair("classifier")
    video = random_video(1, graphs._MAX_FRAMES + 1)
    assert torch.equal(fast(video).logits, plain(video).logits)
    assert fast(random_video(0, 2)).logits.shape == (0, 5)
    assert recorder.count == 0


@torch.no_grad()
def test_the_graph_that_was_unused_for_longest_goes(monkeypatch):
    monkeypatch.setattr(graphs, "_MAX_GRAPHS", 2)
    plain, fast, recorder, state, video = pair("classifier")
    for sizes, count in (([1, 2, 1, 3], 3), ([1], 3), ([2], 4)):
        for size in sizes:
            rows = list(range(size))
            got = fast.step(video[rows, :1], state.select(rows))[0].logits
            assert torch.equal(got, plain.step(video[rows, :1], state.select(rows))[0].logits)
        assert recorder.count == count


def test_threads_do_not_disturb_each_other():
    plain, fast, _, state, _ = pair("classifier")
    videos = [random_video(3, 4, seed=seed) for seed in range(8)]

    @torch.no_grad()
    def stream(video):
        own = state
        for frame in range(4):
            out, own = fast.step(video[:, frame : frame + 1], own)
        return out.logits

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(stream, videos))
    for video, logits in zip(videos, results, strict=True):
        assert torch.allclose(logits, plain(video).logits, atol=1e-6)


@pytest.mark.parametrize("mode", ["graphs", "compile-graphs"])
def test_graphs_need_a_gpu(mode):
    with pytest.raises(ConfigError, match=f"mode='{mode}' runs on a CUDA GPU, the model is on cpu"):
        optimize(tiny_model().cpu(), mode=mode)


def test_many_sequences_are_attended_in_parts(monkeypatch):
    heads = torch.randn(3, 7, 2, 5, 4)
    expected = attend(heads, max_plain_tokens=0)
    monkeypatch.setattr(trecvit_module, "_MAX_SEQUENCES", 3)
    with PretendCuda():
        torch.testing.assert_close(attend(heads.to("cuda"), max_plain_tokens=0).cpu(), expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", [*VARIANTS, "tracker", "matching tracker", "readout tracker"])
def test_a_pass_stays_on_the_device(kind):
    """A graph can record neither a copy from or to the host nor a wait for a result."""
    make, size = MODELS.get(kind, (lambda: tiny_model(**VARIANTS[kind]), (16, 24)))
    if kind == "lstm":
        pytest.skip("lstm: cuDNN's kernel is not imitated")
    with PretendCuda():
        model = make().to("cuda")
        state = model.init_state(QUERIES[:2].to("cuda") if "tracker" in kind else 2)
        frames = random_video(2, 8, *size).to("cuda").float() / 255
        points = [torch.zeros(2, 8, 3, 16, device="cuda")] if kind in ("tracker", "matching tracker") else []
        PretendCuda.crossings.clear()
        out, after = model.engine(frames, *points, state)
        assert PretendCuda.crossings == []
        assert {tensor.device.type for tensor in graphs._tensors((out, after))} == {"cuda"}
        after.frames_seen.sum().item()
        assert PretendCuda.crossings  # which are noticed
