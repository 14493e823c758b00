"""transformers reads, runs, trains and writes our folders, and its pipeline gives the same classes as `classify`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import random_video, relative_error, tiny_model

import trecvit
from trecvit.errors import InputError
from trecvit.runtime.predict import classify
from trecvit.video.encode import VideoWriter

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow  # importing transformers takes ten seconds


@pytest.fixture(scope="module")
def hf():
    from transformers.utils import logging

    import trecvit.hf

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return trecvit.hf


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "noise.mkv"
    rng = np.random.default_rng(0)
    with VideoWriter(path, 12) as writer:
        for number in range(40):
            writer.write(rng.integers(0, 100 + 3 * number, (72, 100, 3), np.uint8))
    return path


def test_the_pipeline_classifies_as_we_do(hf, tmp_path, video):
    model = trecvit.load("motions")
    model.save_pretrained(tmp_path)
    pipeline = transformers.pipeline("video-classification", model=str(tmp_path))
    expected = classify(model, video, num_clips=1, top_k=3)
    got = pipeline(str(video), top_k=3)
    assert tuple(item["label"] for item in got) == expected.labels
    assert [item["score"] for item in got] == pytest.approx(expected.probs, rel=1e-4)


def test_auto_classes_give_the_same_model(hf, tmp_path):
    model = trecvit.load("motions")
    model.save_pretrained(tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (config.num_labels, config.id2label[3], config.label2id["falling"]) == (18, "falling", 3)
    assert config.num_frames == model.preprocessing.num_frames
    loaded = transformers.AutoModelForVideoClassification.from_pretrained(tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.trecvit.state_dict()[name], weight), name
    clip = random_video(num_frames=8, height=64, width=64)
    out = loaded(clip, labels=torch.tensor([2, 3]))
    assert torch.equal(out.logits, model(clip).logits)
    assert torch.equal(out.loss, torch.nn.functional.cross_entropy(out.logits, torch.tensor([2, 3])))
    assert torch.equal(hf.TRecViTForVideoClassification.of(model)(clip).logits, out.logits)


def test_what_transformers_saves_we_load(hf, tmp_path):
    model = trecvit.load("motions")
    wrapped = hf.TRecViTForVideoClassification.of(model)
    wrapped.save_pretrained(tmp_path)
    again = trecvit.load(tmp_path)
    assert again.labels == model.labels
    assert torch.equal(again.norm.weight, model.norm.weight)
    with pytest.raises(InputError, match="state_dict"):
        wrapped.save_pretrained(tmp_path, state_dict=model.state_dict())


def test_the_processor_gives_the_models_pixels(hf, tmp_path, video):
    model = trecvit.load("motions")
    model.save_pretrained(tmp_path)
    processor = hf.TRecViTVideoProcessor.from_pretrained(tmp_path)
    assert processor.preprocessing == model.preprocessing.to_dict()
    frames = np.random.default_rng(0).integers(0, 256, (8, 70, 90, 3), np.uint8)
    expected = trecvit.video.transforms.to_clip(frames, (64, 64)).float() / 255
    for given in (frames, torch.from_numpy(frames).movedim(-1, 1), [frames]):
        assert torch.equal(processor(given)["pixel_values"], expected[None])
    assert processor([video, str(video)], num_frames=4)["pixel_values"].shape == (2, 4, 3, 64, 64)
    with pytest.raises(InputError, match="expected uint8"):
        processor(frames.astype(np.float32))
    processor.save_pretrained(tmp_path / "again")
    assert hf.TRecViTVideoProcessor.from_pretrained(tmp_path / "again").preprocessing == processor.preprocessing


def test_a_new_head_is_trained_with_the_old_body(hf, tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForVideoClassification.from_pretrained(
        tmp_path, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1}, ignore_mismatched_sizes=True
    )
    assert relative_error(loaded.trecvit.head.pre_logits.weight, model.head.pre_logits.weight) == 0
    loaded.activation_checkpointing_enable()
    assert loaded.trecvit.recompute == "blocks"
    optimiser = torch.optim.SGD(loaded.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        out = loaded(pixel_values=random_video().float() / 255, labels=torch.tensor([0, 1]))
        optimiser.zero_grad()
        out.loss.backward()
        optimiser.step()
        losses.append(float(out.loss.detach()))
    assert losses[-1] < losses[0]
    loaded.save_pretrained(tmp_path / "tuned")
    assert trecvit.load(tmp_path / "tuned").labels == ("cat", "dog")
