"""Streams in Ray actors and a corpus in Ray Data, on a cluster of this machine; skipped without the extra `ray`."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import trecvit
from serving import MAX_POINTS, change_points, class_probs, images, lone_tracker, served_models, server_process
from test_serve_sessions import close_to

from trecvit.data.layouts import read_unlabelled
from trecvit.errors import CheckpointError, ConfigError, DataError, StateError
from trecvit.model.trecvit import TRecViT
from trecvit.runtime.live import PointSlots, SlotChanges
from trecvit.serve.client import Client
from trecvit.serve.protocol import Result
from trecvit.video.encode import VideoWriter
from trecvit.video.transforms import to_clip
from trecvit.weights.load import load

ray = pytest.importorskip("ray", reason="Ray is an extra")
pytest.importorskip("ray.data", reason="Ray Data is an extra")

from trecvit.runtime.cluster import cluster  # noqa: E402  it needs Ray
from trecvit.runtime.corpus import classify_corpus, open_results  # noqa: E402
from trecvit.serve import actors as actors_module  # noqa: E402
from trecvit.serve.actors import Actors  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray Data's of its own defaults
]
KEY = {"model": "motions"}


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_worker_niceness", "0")
        # Actors import the modules of tests.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
        yield
        ray.shutdown()


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for something that other processes do; a new one imports PyTorch first, on a busy machine."""
    end_s = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end_s, "did not happen"
        time.sleep(0.05)


# ---- streams in actors ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def actors() -> Iterator[Actors]:
    with Actors(served_models, 2) as actors:
        yield actors


@pytest.fixture
def two(actors: Actors, monkeypatch: pytest.MonkeyPatch) -> Actors:
    """Two actors, the same for all tests, and one more once it was added; states are saved after 8 frames."""
    eventually(lambda: actors.num_members == actors.count)
    monkeypatch.setattr(actors_module, "SAVE_EVERY", 8)
    return actors


def kill_process(actor: Any) -> None:
    os.kill(ray.get(actor.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)


@pytest.mark.parametrize("kill", [kill_process, ray.kill])
def test_a_killed_actor_changes_no_answer(two, kill: Callable[[Any], None]):
    """Frames are on their way as it dies; each is answered once, as in a run without interruption."""
    streams = two.models[0]
    frames = images(60)
    probs = class_probs(frames)
    keys = [streams.open() for _ in range(6)]
    answers: dict[int, list[Any]] = {key: [] for key in keys}
    for number, frame in enumerate(frames):
        for key in keys:
            answers[key].append(streams.submit(key, streams.served.to_clip(frame)))
        if number == 30:
            answers[keys[0]][20].result(300)
            assert streams._streams[keys[0]].saved is not None
            kill(streams._streams[keys[0]].member.actor)
        elif number % 10 == 0:
            answers[keys[-1]][-1].result(300)
    for key in keys:
        for seen, (answer, expected) in enumerate(zip(answers[key], probs, strict=True), 1):
            assert answer.result(300).seen == seen
            assert close_to(answer.result().result, expected)
        assert len(streams._streams[key].frames) < 8, "older frames are part of the saved state"
        assert streams.state(key).result(300).frames_seen.tolist() == [60]
        streams.drop(key)


def test_an_actor_that_joins_takes_its_share_of_the_streams(two):
    """And no other stream moves; that none of forty is pinned to it has the odds of 1 to ten million."""
    streams = two.models[0]
    frames = images(20)
    keys = [streams.open() for _ in range(40)]

    def check(numbers: Sequence[int]) -> dict[int, Any]:
        for number in numbers:
            answers = [streams.submit(key, streams.served.to_clip(frames[number])) for key in keys]
            for answer in answers:
                assert answer.result(300).seen == number + 1
                assert close_to(answer.result().result, probs[number])
        return {key: streams._streams[key].member for key in keys}

    probs = class_probs(frames)
    before = check(range(10))
    two.add()
    eventually(lambda: two.num_members == 3)
    after = check(range(10, 20))
    moved = [key for key in keys if before[key] is not after[key]]
    assert moved
    assert {after[key] for key in moved} == {two._members[-1]}
    for key in keys:
        streams.drop(key)


def test_points_and_restarts_move_with_their_stream(two):
    streams = two.models[1]
    draw = random.Random(3)
    rows = [(streams.open(), PointSlots(MAX_POINTS), lone_tracker()) for _ in range(4)]
    for number in range(24):
        waiting = []
        if number == 12:
            kill_process(streams._streams[rows[0][0]].member.actor)
        for place, (key, slots, alone) in enumerate(rows):
            restarts = draw.random() < 0.1
            if restarts:
                slots, alone = PointSlots(MAX_POINTS), lone_tracker()
                rows[place] = key, slots, alone
            change_points(draw, slots, alone)
            frame = images(1, seed=draw.randrange(10**6))[0]
            changes = slots.changes((20, 30))
            slots.settle()
            answer = streams.submit(key, streams.served.to_clip(frame), restarts=restarts, changes=changes)
            waiting.append((answer, slots.rows, alone.update(frame)))
        for answer, places, (points_xy, visible, certainty) in waiting:
            got = answer.result(300).result
            assert (got.visible[places] == visible).all()
            if places:
                assert close_to(got.points_xy[places] * np.array([30, 20]), points_xy)
                assert close_to(got.certainty[places], certainty)


class Broken(SlotChanges):
    def apply(self, state: Any) -> Any:
        raise StateError("broken")


def test_streams_in_actors_are_those_of_a_batcher(two):
    """States that are kept, opened again, and dropped; an edit that fails."""
    streams = two.models[0]
    frames = images(6)
    probs = class_probs(frames)
    clips = [streams.served.to_clip(frame) for frame in frames]
    key = streams.open()
    assert streams.state(key).result(300).frames_seen.tolist() == [0]
    answers = [streams.submit(key, clip, keep=number == 2) for number, clip in enumerate(clips)]
    kept = answers[2].result(300).state
    assert kept is not None
    assert kept.frames_seen.tolist() == [3]
    other = streams.open(kept)
    assert close_to(streams.submit(other, clips[3]).result(300).result, probs[3])
    with pytest.raises(StateError, match="broken"):
        streams.submit(other, clips[4], changes=Broken(0, (), ())).result(300)
    assert close_to(streams.submit(other, clips[4]).result(300).result, probs[4]), "its state is that before"
    streams.drop(other)
    with pytest.raises(StateError, match="closed"):
        streams.submit(other, clips[5]).result(300)
    assert all(close_to(answer.result(300).result, expected) for answer, expected in zip(answers, probs, strict=True))


def test_a_model_that_cannot_be_loaded_is_an_error_of_its_own():
    def no_model() -> Any:
        raise CheckpointError("expected a model, got none")

    with pytest.raises(CheckpointError, match="got none"):
        Actors(no_model, 2)


def test_an_actor_that_dies_while_loading_is_named():
    with pytest.raises(ConfigError, match="expected an actor that loads the models"):
        Actors(lambda: os._exit(1), 1)


# ---- the server as a process ---------------------------------------------------------------------------------------


def actors_of(server: subprocess.Popen[str]) -> set[int]:
    """Process ids of the server's actors: children of Ray's own process, which is a child of the server."""
    parents, actors = {}, set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            parents[int(folder.name)] = int(re.findall(r"PPid:\s*(\d+)", (folder / "status").read_text())[0])
            if (folder / "cmdline").read_bytes().startswith(b"ray::Host"):
                actors.add(int(folder.name))
    return {pid for pid in actors if parents.get(parents[pid]) == server.pid}


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_a_client_sees_nothing_of_a_killed_actor_and_ctrl_c_ends_the_server():
    frames = images(60, height=64, width=64)
    model = load("motions")
    state, probs = model.init_state(1), []
    with torch.inference_mode():
        for frame in frames:
            out, state = model.step(to_clip(frame[None], model.preprocessing.image_size)[None], state)
            probs.append(out.probs[0].numpy())

    def check(result: Result) -> None:
        assert result.seen == result.frame + 1
        for item in result.top:
            assert abs(item.probability - probs[result.frame][model.labels.index(item.label)]) < 2e-5

    with server_process("--ray", "--actors", 2) as (url, process):
        assert process.stderr is not None
        next(line for line in process.stderr if "2 of 2 serve" in line)  # both have loaded the models
        first, second = actors_of(process)  # one of them has the session
        with closing(Client(url, "motions", policy="all", timeout_s=300)) as client:
            for number, frame in enumerate(frames):
                check(client.step(frame))
                if number == 15:
                    os.kill(first, signal.SIGKILL)
                if number == 40:
                    eventually(lambda: len(actors_of(process) - {first, second}) == 1)
                    os.kill(second, signal.SIGKILL)
            eventually(lambda: len(actors_of(process) - {first, second}) == 2)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    lines = stderr.strip().splitlines()
    assert lines[-1] == "trecvit: interrupted"
    assert all(line.startswith(("trecvit: an actor ", "trecvit: waiting for")) for line in lines[:-1]), stderr


# ---- a corpus ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eleven videos and one that is broken."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for number in range(11):
        with VideoWriter(folder / f"{number}.mp4", 12) as writer:
            for _ in range(20):
                writer.write(rng.integers(0, 256, (64, 64, 3), np.uint8))
    (folder / "broken.mp4").write_bytes(b"no video" * 100)
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_corpus_is_interrupted_and_resumed(corpus: Path, tmp_path: Path):
    command = ["classify", "--ray", corpus, "--to", tmp_path, "--actors", 1]
    process = subprocess.Popen(
        [sys.executable, "-m", "trecvit", *map(str, command)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    results = tmp_path / "results.jsonl"
    while process.poll() is None and (not results.exists() or results.read_text().count("\n") < 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130
    assert stderr.strip().splitlines()[-1] == "trecvit: interrupted"
    before = [row for row in rows_of(tmp_path) if "error" not in row]
    assert 2 <= len(before) < 11

    done = trecvit(*command, "--json")
    assert done.returncode == 1
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert f"{len(before)} of 12 videos have a result" in done.stderr
    assert "broken.mp4: expected a video" in done.stderr
    assert "1 of 12 videos could not be read" in done.stderr
    rows = rows_of(tmp_path)
    assert rows[: len(before)] == before
    assert rows[len(before) :] == printed, "no finished row is repeated"
    assert sorted(row["source"] for row in rows) == sorted(path.name for path in corpus.iterdir())
    assert [row["source"] for row in rows if "error" in row] == ["broken.mp4"]

    plain = trecvit("classify", *sorted(corpus.glob("[0-9]*.mp4")), "--json")
    expected = {Path(row["source"]).name: row for row in map(json.loads, plain.stdout.splitlines())}
    for row in rows:
        if "error" not in row:
            other = expected[row["source"]]
            assert row["frames"] == other["frames"] == 20
            assert [item["label"] for item in row["top"]] == [item["label"] for item in other["top"]]
            for item, same in zip(row["top"], other["top"], strict=True):
                assert abs(item["probability"] - same["probability"]) < 2e-6

    again = trecvit(*command)
    assert "11 of 12 videos have a result" in again.stderr
    assert len(rows_of(tmp_path)) == 12, "the broken one was tried again, and has one row"
    other = trecvit("classify", "--ray", corpus, "--to", tmp_path, "--top", 3)
    assert "same settings, got top=5" in other.stderr


class Fatal:
    """A model that ends its process at the video of 7 frames."""

    def __init__(self) -> None:
        self._model = load("motions")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, clip: Any) -> Any:
        if clip.float().mean() < 1:
            os._exit(1)
        return self._model(clip)


def test_a_video_that_ends_its_process_is_named_and_the_others_are_classified(corpus: Path, tmp_path: Path):
    with VideoWriter(corpus / "fatal.mp4", 12) as writer:
        for _ in range(7):
            writer.write(np.zeros((64, 64, 3), np.uint8))
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{corpus / name}\n" for name in ("0.mp4", "fatal.mp4", "1.mp4", "gone.mp4")))
    with open_results(tmp_path / "results", KEY) as results:
        rows = list(classify_corpus(read_unlabelled(listed), Fatal, results, num_clips=1, top_k=1, num_actors=1))
    (corpus / "fatal.mp4").unlink()
    assert rows[0] == {"source": str(corpus / "gone.mp4"), "error": f"{corpus / 'gone.mp4'}: listed without a file"}
    assert rows_of(tmp_path / "results") == rows
    errors = {Path(row["source"]).name: row.get("error") for row in rows}
    assert "its process died 3 times" in errors.pop("fatal.mp4")
    assert errors.pop("gone.mp4")
    assert errors == {"0.mp4": None, "1.mp4": None}


def test_a_corpus_without_its_model_is_an_error(corpus: Path, tmp_path: Path):
    def no_model() -> TRecViT:
        raise CheckpointError("expected a model, got none")

    with open_results(tmp_path, KEY) as results, pytest.raises(CheckpointError, match="got none"):
        list(classify_corpus(read_unlabelled(corpus), no_model, results, num_clips=1, top_k=1, num_actors=1))


def test_a_damaged_row_is_named_and_a_part_of_one_is_left_out(tmp_path: Path):
    whole = {"source": "a.mp4", "frames": 1, "top": []}
    (tmp_path / "results.jsonl").write_text(json.dumps(whole) + '\n{"source": "b.mp4", "fr')
    with open_results(tmp_path, KEY) as results:
        assert results.sources == {"a.mp4"}
        results.add({"source": "b.mp4", "error": "broken"})
    assert [row["source"] for row in rows_of(tmp_path)] == ["a.mp4", "b.mp4"]
    with open_results(tmp_path, KEY) as results:
        assert results.sources == {"a.mp4"}, "what failed is tried again"
    assert rows_of(tmp_path) == [whole]
    (tmp_path / "results.jsonl").write_text('{"no": 1}\n')
    with pytest.raises(DataError, match="line 1: expected the row of a video"), open_results(tmp_path, KEY):
        pass


def test_a_cluster_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=10.0.0.1:6379"), cluster():
        pass
