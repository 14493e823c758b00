"""Batches of streams: each stream's results are those of its own lone run."""

from __future__ import annotations

import random
from concurrent.futures import Future
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from models import tiny_model
from serving import MAX_POINTS, change_points, class_probs, images, lone_tracker, served_models

from trecvit.errors import StateError
from trecvit.runtime.live import PointSlots, SlotChanges
from trecvit.serve import batching
from trecvit.serve.batching import Answer, Batcher, JointStates, ServedClassifier

TOLERANCE = 1e-5


def close_to(got: np.ndarray, expected: np.ndarray) -> bool:
    return float(np.abs(got - expected).max()) <= TOLERANCE * max(1.0, float(np.abs(expected).max()))


def test_states_join_leave_and_are_replaced_as_if_each_were_alone():
    model = tiny_model()
    states, rows = JointStates(), {}
    draw = random.Random(0)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for turn in range(22):
            if turn % 5 == 0:
                rows[turn] = model.init_state(1)
                states.put(turn, rows[turn])
            keys = draw.sample(list(rows), draw.randint(1, len(rows)))
            order, state = states.gather(keys)
            assert sorted(order) == sorted(keys)
            frames = torch.randint(0, 256, (len(order), 1, 3, 16, 24), dtype=torch.uint8, generator=generator)
            _, state = model.step(frames, state)
            states.replace(state)
            for row, key in enumerate(order):
                _, rows[key] = model.step(frames[row : row + 1], rows[key])
            if turn % 7 == 6:
                gone = draw.choice(list(rows))
                states.drop(gone)
                del rows[gone]
                with pytest.raises(StateError, match="closed"):
                    states.get(gone)
            assert len(states) == len(rows)
            for key, alone in rows.items():
                for got, expected in zip(states.get(key)._tensors().values(), alone._tensors().values(), strict=True):
                    assert got.shape == expected.shape
                    if got.numel():
                        assert float((got.float() - expected.float()).abs().max()) < TOLERANCE


def test_the_same_batch_again_copies_no_state(monkeypatch):
    model = tiny_model()
    states = JointStates()
    for key in range(3):
        states.put(key, model.init_state(1))
    order, state = states.gather([0, 1, 2])
    monkeypatch.setattr(type(state), "select", lambda *_: pytest.fail("selected"))
    monkeypatch.setattr(type(state), "cat", lambda *_: pytest.fail("joined"))
    assert states.gather([2, 0, 1]) == (order, state)


def run_classes(num_streams: int, num_frames: int) -> None:
    """Streams of different videos that join, pause, reset and leave at random; each against its lone run."""
    served = served_models()[0]
    batcher = Batcher(served)
    draw = random.Random(1)
    videos: dict[int, list[Any]] = {}
    answers: dict[int, list[Future[Answer[Any]]]] = {}
    restarts: dict[int, set[int]] = {}
    sizes = []
    try:
        done = 0
        while done < num_frames:
            if len(videos) < num_streams:
                key = batcher.open()
                videos[key], answers[key], restarts[key] = [], [], {0}
            chosen = [key for key in videos if draw.random() < 0.7]
            for key in chosen:
                frame = images(1, seed=draw.randrange(10**6))[0]
                if does_restart := draw.random() < 0.1:
                    restarts[key].add(len(videos[key]))
                videos[key].append(frame)
                answers[key].append(batcher.submit(key, served.to_clip(frame), restarts=does_restart))
            done += len(chosen)
            sizes += [answers[key][-1].result().batch for key in chosen]
            if draw.random() < 0.1 and videos:
                key = draw.choice(list(videos))
                check_classes(videos.pop(key), answers.pop(key), restarts.pop(key))
                batcher.drop(key)
        for key in videos:
            check_classes(videos[key], answers[key], restarts[key])
        assert max(sizes) > num_streams // 3, "streams were stepped together"
    finally:
        batcher.close()


def check_classes(video: list[Any], answers: list[Future[Answer[Any]]], restarts: set[int]) -> None:
    parts = sorted({*restarts, len(video)})
    for start, end in pairwise(parts):
        for seen, (probs, answer) in enumerate(zip(class_probs(video[start:end]), answers[start:end], strict=True), 1):
            assert answer.result().seen == seen
            assert close_to(answer.result().result, probs)


def test_classified_streams_equal_their_lone_runs():
    run_classes(num_streams=6, num_frames=90)


@pytest.mark.slow
def test_64_streams_equal_their_lone_runs():
    run_classes(num_streams=64, num_frames=10_000)


def test_tracked_streams_equal_their_lone_runs():
    served = served_models()[1]
    batcher = Batcher(served)
    draw = random.Random(2)
    try:
        streams = [(batcher.open(), PointSlots(MAX_POINTS), lone_tracker()) for _ in range(4)]
        for _ in range(15):
            waiting = []
            for key, slots, alone in streams:
                if draw.random() < 0.3:
                    continue
                change_points(draw, slots, alone)
                frame = images(1, seed=draw.randrange(10**6))[0]
                changes = slots.changes((20, 30))
                slots.settle()
                waiting.append((batcher.submit(key, served.to_clip(frame), changes=changes), slots.rows, alone, frame))
            for future, rows, alone, frame in waiting:
                points_xy, visible, certainty = alone.update(frame)
                got = future.result().result
                if rows:
                    assert close_to(got.points_xy[rows] * np.array([30, 20]), points_xy)
                    assert close_to(got.certainty[rows], certainty)
                assert (got.visible[rows] == visible).all()
    finally:
        batcher.close()


def test_a_failing_edit_fails_its_own_stream_only():
    served = served_models()[0]
    batcher = Batcher(served)
    try:
        good, bad = batcher.open(), batcher.open()
        clip = served.to_clip(images(1)[0])

        class Broken(SlotChanges):
            def apply(self, state: Any) -> Any:
                raise StateError("broken")

        futures = [batcher.submit(bad, clip, changes=Broken(0, (), ())), batcher.submit(good, clip)]
        with pytest.raises(StateError, match="broken"):
            futures[0].result()
        assert futures[1].result().seen == 1
        assert batcher.submit(bad, clip).result().seen == 1, "its state is that before"
        batcher.drop(bad)
        with pytest.raises(StateError, match="closed"):
            batcher.submit(bad, clip).result()
    finally:
        batcher.close()
    with pytest.raises(StateError, match="closed"):
        batcher.submit(good, clip)


def test_a_failing_step_leaves_the_states_before_it(monkeypatch):
    served = served_models()[0]
    batcher = Batcher(served)
    try:
        key = batcher.open()
        clip = served.to_clip(images(1)[0])
        batcher.submit(key, clip).result()
        step = served.step
        monkeypatch.setattr(served, "step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            batcher.submit(key, clip).result()
        monkeypatch.setattr(served, "step", step)
        assert batcher.submit(key, clip).result().seen == 2
    finally:
        batcher.close()


def test_one_stream_is_not_kept_waiting_and_many_wait_5_ms_at_most(monkeypatch):
    served = ServedClassifier("classes", tiny_model())
    batcher = Batcher(served)
    try:
        monkeypatch.setattr(batching, "WAIT_S", 30.0)  # a test that waited would time out
        keys = [batcher.open() for _ in range(2)]
        clip = served.to_clip(images(1)[0])
        assert batcher.submit(keys[0], clip).result().batch == 1
        futures = [batcher.submit(key, clip) for key in keys]
        assert {future.result().batch for future in futures} <= {1, 2}
        # Both are active now: a frame of one waits for the other's.
        first = batcher.submit(keys[0], clip)
        second = batcher.submit(keys[1], clip)
        assert (first.result().batch, second.result().batch) == (2, 2)
        monkeypatch.setattr(batching, "WAIT_S", 0.005)
        assert batcher.submit(keys[0], clip).result().batch == 1
    finally:
        batcher.close()


def test_frames_of_one_stream_are_processed_in_order_one_per_batch():
    served = served_models()[0]
    batcher = Batcher(served)
    try:
        key = batcher.open()
        frames = images(6)
        futures = [batcher.submit(key, served.to_clip(frame)) for frame in frames]
        for future, probs in zip(futures, class_probs(frames), strict=True):
            assert future.result().batch == 1
            assert close_to(future.result().result, probs)
    finally:
        batcher.close()


def test_the_slots_of_a_stream_are_restored():
    slots = PointSlots(MAX_POINTS)
    ids = [slots.add(1, 2) for _ in range(3)]
    slots.remove(ids[1])
    slots.settle()
    again = PointSlots.from_dict(slots.to_dict())
    assert (again.ids, again.rows, again.add(3, 4)) == (slots.ids, slots.rows, slots.add(3, 4))
