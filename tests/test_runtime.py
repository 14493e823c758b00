from __future__ import annotations

import io
import pickle
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from models import tiny_model

from trecvit.bench.memory import StreamMemory, stream_memory
from trecvit.config import Preprocessing
from trecvit.errors import ConfigError, InputError, MissingPackageError, VideoError
from trecvit.model.trecvit import TRecViT
from trecvit.processor import FEATURES, features, supports
from trecvit.runtime import doctor
from trecvit.runtime.demo import render_scenes
from trecvit.runtime.describe import describe, flops_per_frame
from trecvit.runtime.predict import class_labels, classify
from trecvit.runtime.stream import annotate, stream
from trecvit.synthetic.world import LABELS
from trecvit.video.decode import probe, read_frames
from trecvit.video.encode import VideoWriter
from trecvit.video.transforms import to_clip


def small_model(**preprocessing) -> TRecViT:
    plan = Preprocessing(**{"image_size": (16, 24), "num_frames": 4, "frame_stride": 2, **preprocessing})
    model = TRecViT(tiny_model().config, preprocessing=plan, labels=list("abcde"))
    model.load_state_dict(tiny_model().state_dict())
    return model.eval()


def noise(num_frames: int, height: int = 32, width: int = 48) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), np.uint8)


def test_classify_averages_clips_spread_over_the_video():
    model, video = small_model(), noise(20, height=24, width=40)
    answer = classify(model, video, num_clips=3, top_k=5)
    clips = [to_clip(video[start : start + 7 : 2], (16, 24)) for start in (0, 7, 13)]
    with torch.no_grad():
        expected = torch.stack([model(clip[None]).probs[0] for clip in clips]).mean(dim=0)
    order = expected.argsort(descending=True)
    assert answer.labels == tuple("abcde"[index] for index in order)
    np.testing.assert_allclose(answer.probs, expected[order].numpy(), rtol=1e-4)
    assert answer.num_video_frames == 20


def test_a_video_shorter_than_a_clip_is_one_clip():
    model, clips = small_model(), []
    model.register_forward_hook(lambda _, inputs, __: clips.append(inputs[0].shape[:2]))
    classify(model, noise(3), num_clips=4)
    assert clips == [(1, 4)]


@contextmanager
def served(handler) -> Iterator[str]:
    """The address of a server that answers by `handler`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Camera(BaseHTTPRequestHandler):
    """JPEG pictures without end, as network cameras send them."""

    def do_GET(self) -> None:
        picture = io.BytesIO()
        PIL.Image.fromarray(noise(1)[0]).save(picture, "JPEG")
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + picture.getvalue() + b"\r\n")
        except OSError:  # the reader has gone
            pass

    def log_message(self, *_: object) -> None:
        pass


class Files(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_a_stream_without_an_end_is_not_classified():
    with served(Camera) as address, pytest.raises(VideoError, match=r"expected a video with an end.*use `trecvit str"):
        classify(small_model(), f"{address}/video")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_an_address_that_states_a_length_is_classified_as_its_file(tmp_path, suffix):
    path = tmp_path / f"video{suffix}"
    with VideoWriter(path, 25) as writer:
        for image in noise(20):
            writer.write(image)
    with served(partial(Files, directory=str(tmp_path))) as address:
        by_address = classify(small_model(), f"{address}/{path.name}")
    assert by_address.probs == classify(small_model(), path).probs


def test_the_stride_follows_the_videos_frame_rate(tmp_path):
    path = tmp_path / "fast.mp4"
    with VideoWriter(path, Fraction(48)) as writer:
        for image in noise(40):
            writer.write(image)
    model = small_model(frame_rate_fps=12)
    by_rate = classify(model, path, num_clips=1)
    by_hand = classify(small_model(frame_stride=4), path, num_clips=1)
    assert by_rate.probs == by_hand.probs


def test_streaming_gives_the_clips_answer_frame_by_frame():
    model, video = small_model(), noise(9)
    updates = list(stream(model, video, stride=2))
    assert [update.index for update in updates] == list(range(9))
    assert [update.is_new for update in updates] == [index % 2 == 0 for index in range(9)]
    assert updates[-1].frames_seen == 5
    with torch.no_grad():
        clip = model(to_clip(video[::2], (16, 24))[None]).probs[0]
    np.testing.assert_allclose(updates[-1].probs, clip.numpy(), rtol=1e-4)
    assert np.array_equal(updates[3].probs, updates[2].probs)
    assert [label for label, _ in updates[-1].top(model.labels, 2)] == [
        model.labels[index] for index in clip.argsort(descending=True)[:2]
    ]


def test_a_restart_forgets_everything():
    model, video = small_model(), noise(8)
    updates = list(stream(model, video, restart_every=4))
    alone = list(stream(model, video[4:]))
    assert [update.frames_seen for update in updates] == [1, 2, 3, 4] * 2
    for update, fresh in zip(updates[4:], alone, strict=True):
        assert np.array_equal(update.probs, fresh.probs)


def test_what_cannot_be_run_is_refused():
    headless = tiny_model(num_classes=0)
    with pytest.raises(ConfigError, match="no head"):
        class_labels(headless)
    with pytest.raises(ConfigError, match="no head"):
        stream(headless, noise(3))
    with pytest.raises(InputError, match="stride >= 1"):
        stream(small_model(), noise(3), stride=0)
    with pytest.raises(InputError, match="top_k >= 1"):
        classify(small_model(), noise(3), top_k=0)
    with pytest.raises(VideoError):
        list(stream(small_model(), "missing.mp4"))
    assert class_labels(tiny_model()) == ("class 0", "class 1", "class 2", "class 3", "class 4")


def test_annotated_frames_show_something_and_are_large_enough_to_read():
    model = small_model()
    update = next(iter(stream(model, noise(1))))
    drawn = annotate(update, model.labels, footer="truth: a")
    assert drawn.dtype == np.uint8
    assert min(drawn.shape[:2]) >= 360


@pytest.mark.slow
def test_a_streams_memory_is_read_at_a_tenth_and_at_the_end():
    done = []
    memory = stream_memory(small_model(), num_frames=50, report=done.append)
    assert memory.frames == (5, 50)
    assert memory.state_bytes[0] == memory.state_bytes[1] > 0
    assert memory.frames_per_s > 0
    assert done == [50]
    with pytest.raises(InputError, match="num_frames >= 10"):
        stream_memory(small_model(), num_frames=9)


def test_growth_is_noticed():
    def memory(peaks, states) -> StreamMemory:
        return StreamMemory((10, 100), peaks, states, 1.0)

    assert memory((500_000_000, 501_000_000), (80, 80)).is_flat
    assert not memory((500_000_000, 510_000_000), (80, 80)).is_flat
    assert not memory((500_000_000, 500_000_000), (80, 88)).is_flat


@pytest.mark.slow
def test_memory_of_a_leaking_model_is_seen():
    model = small_model()
    kept = []
    plain = model.step

    def leaking_step(frames, state):
        kept.append(torch.ones(1_000_000))  # pages of their own, whatever the process has freed before
        return plain(frames, state)

    model.step = leaking_step
    assert not stream_memory(model, num_frames=60).is_flat


@pytest.mark.slow
def test_descriptions_state_what_the_model_is():
    facts = describe(small_model())
    assert facts["parameters"] == sum(parameter.numel() for parameter in small_model().parameters())
    assert facts["labels"] == list("abcde")
    assert facts["state bytes per stream"] == small_model().init_state(1).nbytes


@pytest.mark.slow
def test_operations_per_frame_are_those_of_the_matrix_products():
    config = tiny_model().config
    width, tokens, blocks = config.width, 7, config.num_heads
    per_token = 3 * width**2 + 2 * width**2 // blocks  # linear y, x, out; two block-diagonal gates
    per_token += 4 * width**2 + 2 * width * config.mlp_width  # queries, keys, values, out; MLP
    attention = 2 * tokens**2 * width
    head = config.width * config.head_width + config.head_width * config.num_classes
    embedding = 6 * 3 * 8 * 8 * width
    multiply_adds = config.depth * (tokens * per_token + attention) + embedding + head
    assert flops_per_frame(small_model()) == 2 * multiply_adds


@pytest.mark.slow
def test_rendered_scenes_hold_one_scene_of_each_pair(tmp_path):
    truths = render_scenes(tmp_path / "scenes.mp4", seed=3)
    assert sorted(LABELS.index(truth) // 2 for truth in truths) == list(range(9))
    assert {LABELS.index(truth) % 2 for truth in truths} == {0, 1}
    assert probe(tmp_path / "scenes.mp4").average_fps == 12
    assert sum(1 for _ in read_frames(tmp_path / "scenes.mp4")) == 9 * 16


@pytest.mark.slow
def test_the_doctor_finds_this_machine_well(processor):
    findings = {finding.name: finding for finding in doctor.examine()}
    for name in (
        "Python",
        "PyTorch",
        "decoding and encoding",
        "bundled model",
        "threads",
        "fastest here",
        "cache folder",
    ):
        assert findings[name].works is True, findings[name].words
    timed, slow = (
        re.findall(pattern, findings["fastest here"].words) for pattern in (r"ms in (\w+)", r"no fast (\w+)")
    )
    assert sorted(timed + slow) == ["bfloat16", "float32", "int8"]
    assert re.match(r"--mode eager --dtype (\w+) ", findings["fastest here"].words).group(1) in timed
    if processor != "this":
        assert timed == ["float32"]
    supported, _, missing = findings["processor"].words.partition("supports ")[2].partition("; lacks ")
    assert supported == (", ".join(features()) or "no feature we use")
    assert missing == ", ".join(feature for feature in FEATURES if not supports(feature))


@pytest.mark.parametrize(
    ("count", "words"), [(2, "2 of 2 run concurrently"), (1, "only 1 of 2 run concurrently while other")]
)
def test_the_doctor_says_how_many_threads_run_at_once(monkeypatch, count, words):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr("trecvit.accelerate.threads.ThreadChoice", lambda most: SimpleNamespace(count=count))
    assert doctor._threads().startswith(words)


@pytest.mark.slow
def test_the_doctor_reports_what_is_broken_and_looks_at_the_rest(monkeypatch):
    def broken() -> None:
        raise OSError("no home")

    monkeypatch.setattr(doctor, "_zoo", broken)
    monkeypatch.setattr(doctor, "_video", broken)
    findings = {finding.name: finding for finding in doctor.examine()}
    assert (findings["weights"].works, findings["weights"].words) == (False, "OSError: no home")
    assert (findings["decoding and encoding"].works, findings["bundled model"].works) == (False, True)


@pytest.mark.parametrize("error", [
    VideoError("a.mp4", "is cut", frames_read=3, time_s=1.5),
    MissingPackageError("x", needed_for="y", extra="z"),
    ConfigError("no"),
])  # fmt: skip
def test_errors_come_whole_out_of_another_process(error):
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))
    assert getattr(again, "frames_read", None) == getattr(error, "frames_read", None)
    assert getattr(again, "time_s", None) == getattr(error, "time_s", None)


def test_an_unknown_frame_rate_is_said(monkeypatch):
    monkeypatch.setattr("trecvit.video.decode._StillVideo.length_and_rate", lambda self: (12, None))
    with pytest.warns(UserWarning, match="frame rate unknown, using a stride of 2 frames"):
        classify(small_model(frame_rate_fps=6.0), noise(12))
