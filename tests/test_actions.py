"""The bundled classifier of human actions: whole, small, streaming, and its class for nothing."""

from __future__ import annotations

import zlib
from importlib.resources import files

import pytest
import torch

from trecvit.pretrained import WEIGHTS_FILE
from trecvit.train.videos import NOTHING
from trecvit.weights.load import load


@pytest.fixture(scope="module")
def model():
    return load("actions")


def test_it_has_the_actions_and_a_class_for_nothing(model):
    assert len(model.labels) == 22
    assert model.labels[-1] == NOTHING
    assert {"brush_hair", "clap", "sit", "stand", "throw", "wave"} <= set(model.labels)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_wheel_holds_it_in_twelve_megabytes():
    stored = (files("trecvit.weights") / "actions" / WEIGHTS_FILE).read_bytes()
    assert len(zlib.compress(stored, 6)) < 12e6  # wheels are zip archives


@torch.no_grad()
def test_frame_by_frame_is_the_whole_clip(model):
    torch.manual_seed(0)
    video = torch.randint(0, 256, (1, 4, 3, *model.preprocessing.image_size), dtype=torch.uint8)
    state = model.init_state(1)
    assert sum(layer.hidden.numel() > 0 for layer in state.layers) == 1, "only the last block remembers"
    for frame in video.split(1, dim=1):
        out, state = model.step(frame, state)
    torch.testing.assert_close(out.logits, model(video).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("level", [0, 90, 255])
def test_in_an_empty_picture_nothing_happens(model, level):
    video = torch.full((1, 6, 3, *model.preprocessing.image_size), level, dtype=torch.uint8)
    assert model.labels[int(model(video).probs.argmax())] == NOTHING
