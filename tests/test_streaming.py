"""Streams against clips: any cut, any rows, any interruption."""

from __future__ import annotations

import json
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import DEVICE, TINY, VARIANTS, random_video, relative_error, tiny_model, tiny_readout_tracker
from safetensors.torch import save_file
from torch import Tensor

from paper.memoriser import Memoriser, MemoriserConfig
from trecvit.accelerate.optimize import optimize
from trecvit.config import ModelConfig, Preprocessing
from trecvit.errors import ConfigError, InputError, StateError
from trecvit.model.state import State
from trecvit.model.trecvit import Output, TRecViT, create_model

TOLERANCE = 1e-5  # float32: the same sums in another order
NUM_FRAMES = 12
MODELS = {name: tiny_model(**overrides) for name, overrides in VARIANTS.items()}
CORE, SLOW = ("plain", "complex", "lstm", "full_conv", "pairs_of_frames"), pytest.mark.slow
cuts = st.lists(st.integers(1, NUM_FRAMES - 1), unique=True, max_size=NUM_FRAMES - 1).map(sorted)


def run(model: TRecViT, video: Tensor, places: list[int], state: State | None = None) -> tuple[list[Tensor], State]:
    """Stream a video cut at these places: the outputs after each piece and the last state."""
    state = state or model.init_state(video.shape[0], image_size=(16, 24))
    answers = []
    for start, end in pairwise([0, *places, video.shape[1]]):
        out, state = model.step(video[:, start:end], state)
        answers.append(out.features if out.logits is None else out.logits)
    return answers, state


def assert_same(got: State, expected: State) -> None:
    assert torch.equal(got.frames_seen, expected.frames_seen)
    for name, tensor in expected._tensors().items():
        assert relative_error(got._tensors()[name], tensor) < TOLERANCE, name


@cache
def at_once_of(variant: str, seed: int) -> tuple[Output, State]:
    """What a model makes of a video given as a clip, and its state after one step."""
    model, video = MODELS[variant], random_video(2, NUM_FRAMES, seed=seed)
    return model(video), run(model, video, [])[1]


def _some_fast(*names: str) -> list[Any]:
    """All variants, of which these are in the fast tier."""
    return [pytest.param(name, marks=() if name in names else pytest.mark.slow) for name in VARIANTS]


@pytest.mark.parametrize("variant", _some_fast("plain", "temporal_mlp", "lstm", "pairs_of_frames"))
@given(places=cuts, seed=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_any_cut_gives_the_clips_output(variant, places, seed):
    model, (clip, at_once) = MODELS[variant], at_once_of(variant, seed)
    video = random_video(2, NUM_FRAMES, seed=seed)
    state, features = model.init_state(2, image_size=(16, 24)), []
    for start, end in pairwise([0, *places, NUM_FRAMES]):
        out, state = model.step(video[:, start:end], state)
        features.append(out.features)
    if model.config.num_classes:
        assert relative_error(out.logits, clip.logits) < TOLERANCE
    assert relative_error(torch.cat(features, dim=1), clip.features) < TOLERANCE
    assert_same(state, at_once)


def test_every_output_is_that_of_the_video_so_far():
    model, video = tiny_model(), random_video(2, 8)
    answers, _ = run(model, video, list(range(1, 8)))
    for length, answer in enumerate(answers, start=1):
        assert relative_error(answer, model(video[:, :length]).logits) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("variant", [name if name in CORE else pytest.param(name, marks=SLOW) for name in VARIANTS])
@given(masks=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=4), seed=st.integers(0, 9))
@settings(max_examples=10, deadline=None)
def test_a_reset_row_starts_as_a_new_video_and_the_others_continue(variant, masks, seed):
    model = MODELS[variant]
    state = model.init_state(3, image_size=(16, 24))
    histories = [torch.zeros(1, 0, 3, 16, 24, dtype=torch.uint8, device=DEVICE)] * 3
    for number, mask in enumerate(masks):
        piece = random_video(3, 2 + (seed + number) % 3, seed=seed * 10 + number)
        out, state = model.step(piece, state)
        histories = [torch.cat([history, piece[row : row + 1]], dim=1) for row, history in enumerate(histories)]
        for row, history in enumerate(histories):
            if model.config.num_classes and history.shape[1] >= model.config.temporal_patch_size:
                assert relative_error(out.logits[row : row + 1], model(history).logits) < TOLERANCE
        state = state.reset(mask)
        histories = [history[:, :0] if mask[row] else history for row, history in enumerate(histories)]
    assert state.frames_seen.tolist() == [history.shape[1] for history in histories]
    for row, is_reset in enumerate(masks[-1]):
        if is_reset:
            assert all(
                torch.equal(tensor, fresh)
                for tensor, fresh in zip(
                    state.select([row])._tensors().values(),
                    model.init_state(1, image_size=(16, 24))._tensors().values(),
                    strict=True,
                )
            )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@given(rows=st.lists(st.integers(0, 3), min_size=1, max_size=5))
@settings(max_examples=10, deadline=None)
def test_rows_can_be_dropped_moved_repeated_and_joined_in_mid_stream(dtype, rows):
    model = tiny_model().to(dtype)
    first, second = random_video(4, 3, seed=1), random_video(4, 4, seed=2)
    _, state = run(model, first, [1])
    chosen = state.select(rows)
    assert chosen.batch_size == len(rows)
    (answer,), _ = run(model, second[rows], [], chosen)
    tolerance = TOLERANCE if dtype == torch.float32 else 2e-2  # sums of 8-bit numbers, blocked differently per batch
    for place, row in enumerate(rows):
        (alone,), _ = run(model, second[row : row + 1], [], state.select([row]))
        assert relative_error(answer[place : place + 1], alone) < tolerance
    joined = State.cat([state.select([2]), state.select([0, 1]), state.select([3])])
    assert all(
        torch.equal(a, b)
        for a, b in zip(joined._tensors().values(), state.select([2, 0, 1, 3])._tensors().values(), strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["plain", "complex", "patches_of_four_frames", "lstm", "full_conv"])
def test_a_saved_state_resumes_bit_exactly(tmp_path, variant, dtype):
    model = tiny_model(**VARIANTS[variant]).to(dtype)
    video = random_video(2, 9)
    _, state = run(model, video[:, :5], [2])
    state.save(tmp_path / "camera.state")
    loaded = State.load(tmp_path / "camera.state", device=DEVICE)
    assert loaded.config == state.config
    (expected,), _ = run(model, video[:, 5:], [], state)
    (got,), _ = run(model, video[:, 5:], [], loaded)
    assert torch.equal(got, expected)
    assert [path.name for path in tmp_path.iterdir()] == ["camera.state"]


def test_a_state_can_move_to_a_model_of_another_dtype():
    video = random_video(1, 8)
    exact, coarse = tiny_model(), tiny_model().to(torch.bfloat16)
    _, state = run(exact, video[:, :4], [])
    moved = state.to(DEVICE, torch.bfloat16)
    assert moved.dtype == torch.bfloat16
    assert all(layer.hidden.dtype == torch.float32 for layer in moved.layers)
    (answer,), _ = run(coarse, video[:, 4:], [], moved)
    assert relative_error(answer, exact(video).logits) < 0.05


def test_methods_leave_the_state_as_it_is():
    model = tiny_model()
    _, state = run(model, random_video(2, 3), [])
    copies = {name: tensor.clone() for name, tensor in state._tensors().items()}
    state.reset([True, False])
    state.select([0])
    state.to(dtype=torch.bfloat16)
    model.step(random_video(2, 2), state)
    assert all(torch.equal(tensor, copies[name]) for name, tensor in state._tensors().items())


@pytest.mark.slow
def test_the_size_of_a_state_does_not_depend_on_the_frames_seen():
    model = tiny_model()
    _, short = run(model, random_video(1, 1), [])
    _, long = run(model, random_video(1, 60), list(range(1, 60)))
    assert short.nbytes == long.nbytes == model.init_state(1, image_size=(16, 24)).nbytes
    assert model.init_state(3, image_size=(16, 24)).nbytes == 3 * short.nbytes


@pytest.mark.parametrize(
    "variant", ["plain", "complex", "patches_of_four_frames", "temporal_mlp", "lstm", "full_conv", "no_gates"]
)
def test_gradients_flow_through_a_carried_state(variant):
    model = MODELS[variant].double()
    try:
        video = random_video(2, 8).double() / 255
        weights = list(model.parameters())

        def loss(places: list[int]) -> Tensor:
            state = model.init_state(2, image_size=(16, 24))
            for start, end in pairwise([0, *places, 8]):
                _, state = model.step(video[:, start:end], state)
            return state.evidence.square().sum() + sum(layer.hidden.square().sum() for layer in state.layers)

        whole = torch.autograd.grad(loss([]), weights, allow_unused=True)
        pieces = torch.autograd.grad(loss([3, 4]), weights, allow_unused=True)
        for (name, _), got, expected in zip(model.named_parameters(), pieces, whole, strict=True):
            assert (got is None) == (expected is None), name
            if expected is not None:
                assert relative_error(got, expected) < 1e-9, name
        cut = model.step(video, model.init_state(2, image_size=(16, 24)))[1].detach()
        assert not any(tensor.requires_grad for tensor in cut._tensors().values())
    finally:
        model.float()


def test_a_very_long_stream_still_adapts():
    """After 20 million frames a float32 sum would ignore new frames; the running mean does not."""
    model = tiny_model()
    _, state = run(model, random_video(1, 2), [])
    aged = state.replace(frames_seen=torch.tensor([20_000_000], device=DEVICE))
    _, after = run(model, random_video(1, 1, seed=5), [], aged)
    assert relative_error(after.evidence, state.evidence) < 1e-5


# ---- states that do not fit ----


def test_states_that_do_not_fit_are_refused_with_what_to_do():
    model = tiny_model()
    video = random_video(2, 2)
    state = model.init_state(2, image_size=(16, 24))
    with pytest.raises(StateError, match=r"holds 3 streams, the frames 2.*state\.select"):
        model.step(video, model.init_state(3, image_size=(16, 24)))
    with pytest.raises(StateError, match=r"got another: .*conv_width 4 and 2"):
        model.step(video, tiny_model(conv_width=2).init_state(2, image_size=(16, 24)))
    with pytest.raises(StateError, match="frames of the state's size 16x24, got 16x8"):
        model.step(video[..., :8], state)
    with pytest.raises(StateError, match=r"torch.bfloat16 model.*state\.to\(dtype=torch.float32\)"):
        model.step(video, state.to(dtype=torch.bfloat16))
    with pytest.raises(StateError, match=f"on meta, the model on {DEVICE.type}"):
        model.step(video, state.to("meta"))
    with pytest.raises(InputError, match="patch_size=8 divides, got 16x20"):
        model.init_state(1, image_size=(16, 20))


def test_a_model_with_other_classes_can_use_the_state():
    _, state = run(tiny_model(), random_video(2, 3), [])
    tiny_model(num_classes=7).step(random_video(2, 1), state)


def test_wrong_rows_are_refused():
    state = tiny_model().init_state(2, image_size=(16, 24))
    with pytest.raises(StateError, match="one bool for each of 2 streams"):
        state.reset([True])
    with pytest.raises(StateError, match=r"expected rows of 2 streams, got \[2\]"):
        state.select([2])
    with pytest.raises(StateError, match="row numbers or 2 bools"):
        state.select([True, False, True])
    assert state.select([]).batch_size == 0
    assert torch.equal(state.select([False, True]).frames_seen, state.select([1]).frames_seen)
    assert state.select([-1]).batch_size == 1


def test_states_of_different_kinds_are_not_concatenated():
    state = tiny_model().init_state(1, image_size=(16, 24))
    with pytest.raises(StateError, match="at least one state"):
        State.cat([])
    with pytest.raises(StateError, match=r"states 0 and 1.*depth 2 and 1"):
        State.cat([state, tiny_model(depth=1).init_state(1, image_size=(16, 24))])
    with pytest.raises(StateError, match="image_size"):
        State.cat([state, tiny_model().init_state(1, image_size=(16, 8))])
    with pytest.raises(StateError, match="dtype"):
        State.cat([state, state.to(dtype=torch.bfloat16)])


def test_files_that_are_not_states_are_refused(tmp_path):
    model = tiny_model()
    path = tmp_path / "state"
    with pytest.raises(StateError, match=r"written by State\.save"):
        State.load(path)
    path.write_bytes(b"not a state")
    with pytest.raises(StateError, match=r"written by State\.save"):
        State.load(path)
    model.init_state(1, image_size=(16, 24)).save(path)
    whole = path.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 9, 0):
        path.write_bytes(whole[:length])
        with pytest.raises(StateError):
            State.load(path)
    model.save(tmp_path / "model")
    with pytest.raises(StateError, match="expected the format"):
        State.load(tmp_path / "model" / "model.safetensors")


WHOLE_CLIPS = {
    "attention": {"temporal_mixer": "attention"},
    "causal_attention": {"temporal_mixer": "causal_attention"},
    "flat_lru": {"temporal_mixer": "flat_lru", "pooling": "mean"},
}


@pytest.mark.slow
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("variant", [*VARIANTS, *WHOLE_CLIPS])
def test_no_stream_at_all_is_a_batch_like_any_other(variant, fast):
    model = tiny_model(**{**VARIANTS, **WHOLE_CLIPS}[variant])
    model = optimize(model) if fast else model
    expected, after = model.step(random_video(1, 8), model.init_state(1))
    for video in (random_video(0, 8), random_video(0, 8).float() / 255):
        out, state = model.step(video, model.init_state(0))
        for got in (out, model(video), model(video, frames_per_clip=8)):
            for part, one in zip(got, expected, strict=True):
                assert (part is None) == (one is None)
                assert part is None or (part.shape, part.dtype) == ((0, *one.shape[1:]), one.dtype)
        assert state.batch_size == 0
        joined = State.cat([state, after])
        assert all(torch.equal(tensor, joined._tensors()[name]) for name, tensor in after._tensors().items())
    if not fast:
        model(random_video(0, 8)).features.sum().backward()


def test_negative_batch_sizes_are_refused():
    with pytest.raises(InputError, match="batch size of 0 or more, got -1"):
        tiny_model().init_state(-1)


@pytest.mark.slow
@pytest.mark.parametrize("size", [[32, 32], np.array([32, 32]), torch.Size([32, 32]), 32, np.int64(32)])
def test_any_container_of_a_size_is_accepted(size):
    model, tracker = tiny_model(), tiny_readout_tracker()
    memoriser = Memoriser(MemoriserConfig(blocks=ModelConfig(**{**TINY, "num_classes": 0}), offset=0)).to(DEVICE)
    for state, step in (
        (model.init_state(1, image_size=size), model.step),
        (tracker.init_state(torch.zeros(1, 2, 3), image_size=size), tracker.step),
        (memoriser.init_state(1, image_size=size), memoriser.step),
    ):
        assert state.image_size == (32, 32)
        assert {type(side) for side in state.image_size} == {int}
        step(random_video(1, 1, 32, 32), state)
    assert Preprocessing(image_size=size).image_size == (32, 32)
    assert create_model("tiny", depth=1, image_size=size).config.image_size == (32, 32)


@pytest.mark.parametrize("size", [(16.0, 24.0), [], (16,), 0, "16", {16, 24}, (16, 24, 3), True])
def test_invalid_sizes_are_refused(size):
    model = tiny_model()
    with pytest.raises(ConfigError, match=r"image_size: expected \(height, width\) in pixels or one whole number"):
        model.init_state(1, image_size=size)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -0.76, 1.76])
def test_invalid_pixels_are_refused_before_they_reach_a_state(value):
    model = tiny_model()
    frames = random_video(1, 2).float() / 255
    frames[0, 1, 2, 3, 4] = value
    with pytest.raises(InputError, match=r"floating-point pixels in \[0,1\]"):
        model.step(frames, model.init_state(1))


@pytest.mark.parametrize(
    "change",
    [
        {"config": '{"width": 1099511627776}'},
        {"config": '{"depth": 1000000000}'},
        {"image_size": '["a", 3]'},
        {"image_size": "[16]"},
        {"image_size": "[1099511627776, 1099511627776]"},
    ],
)
def test_huge_sizes_in_a_state_file_are_refused(tmp_path, change):
    tiny_model().init_state(1).save(tmp_path / "state")
    with safetensors.safe_open(tmp_path / "state", framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for key, value in change.items():
        metadata[key] = value if key == "image_size" else json.dumps({**json.loads(metadata[key]), **json.loads(value)})
    save_file(tensors, tmp_path / "state", metadata)
    with pytest.raises(StateError):
        State.load(tmp_path / "state")
    save_file({**tensors, "frames_seen": torch.tensor(3)}, tmp_path / "state", metadata)
    with pytest.raises(StateError):
        State.load(tmp_path / "state")
