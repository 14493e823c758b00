"""Readers of the point-tracking benchmarks, on small files in their real layouts."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trecvit.data.tapvid import (
    load_plain_pickle,
    read_perception_test,
    read_tapvid,
    read_track_files,
)
from trecvit.data.tracked import resized_frame
from trecvit.errors import DataError, VideoError
from trecvit.video.encode import VideoWriter

RNG = np.random.default_rng(0)


def entry(num_frames=6, height=20, width=40, num_tracks=3, dtype=np.float32) -> dict[str, np.ndarray]:
    """One video as TAP-Vid stores it."""
    return {
        "video": RNG.integers(0, 256, (num_frames, height, width, 3), np.uint8),
        "points": RNG.uniform(0, 1, (num_tracks, num_frames, 2)).astype(dtype),
        "occluded": RNG.random((num_tracks, num_frames)) < 0.4,
    }


def smooth(num_frames=5, height=32, width=48) -> np.ndarray:
    """Smooth pictures, which JPEG and video codecs hardly change."""
    y, x = np.mgrid[:height, :width]
    frames = [np.stack([x * 4 + t * 3, y * 5, 200 - x * 2 - y], axis=-1) for t in range(num_frames)]
    return np.clip(frames, 0, 255).astype(np.uint8)


def dump(path: Path, content: object, protocol: int = pickle.DEFAULT_PROTOCOL) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def as_jpeg(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


# ---- TAP-Vid ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_davis_is_a_dictionary_by_name(tmp_path: Path, protocol: int) -> None:
    content = {"goat": entry(), "car-roundabout": entry(num_frames=4, num_tracks=1, dtype=np.float64)}
    data = read_tapvid(dump(tmp_path / "tapvid_davis.pkl", content, protocol))
    assert data.names == ("goat", "car-roundabout")
    for name, video in zip(data.names, data, strict=True):
        assert video.name == name
        assert np.array_equal(video.video, content[name]["video"])
        assert np.array_equal(video.occluded, content[name]["occluded"])
        assert video.tracks_xy.dtype == np.float32
        assert np.allclose(video.tracks_xy[..., 0], content[name]["points"][..., 0] * 40, atol=1e-5)
        assert np.allclose(video.tracks_xy[..., 1], content[name]["points"][..., 1] * 20, atol=1e-5)


def test_rgb_stacking_is_a_list(tmp_path: Path) -> None:
    content = [entry(num_frames=3), entry(num_frames=4)]
    data = read_tapvid(dump(tmp_path / "tapvid_rgb_stacking.pkl", content))
    assert data.names == ("tapvid_rgb_stacking[0]", "tapvid_rgb_stacking[1]")
    assert [video.num_frames for video in data] == [3, 4]
    assert np.array_equal(data[1].video, content[1]["video"])


def test_kinetics_is_shards_of_jpeg_frames(tmp_path: Path) -> None:
    frames = smooth()
    shards = [[{**entry(num_frames=5), "video": [as_jpeg(frame) for frame in frames]}], [], [entry(), entry()]]
    # Some copies hold the JPEG files in an array of objects.
    shards[0].append({**shards[0][0], "video": np.array([as_jpeg(frame) for frame in frames[::-1]], object)})
    for number, shard in enumerate(shards):
        dump(tmp_path / f"{number:04}_of_0010.pkl", shard)
    (tmp_path / "readme.txt").write_text("not a shard")
    (tmp_path / "._0000_of_0010.pkl").write_bytes(b"what macOS leaves beside a file")
    data = read_tapvid(tmp_path)
    assert data.names == tuple(f"{n:04}_of_0010[{k}]" for n, k in ((0, 0), (0, 1), (2, 0), (2, 1)))
    assert np.abs(data[0].video.astype(int) - frames).max() <= 12
    assert np.abs(data[1].video.astype(int) - frames[::-1]).max() <= 12
    assert np.array_equal(data[3].video, shards[2][1]["video"])
    assert np.array_equal(data[0].occluded, shards[0][0]["occluded"])


def test_points_are_not_changed_by_reading_twice(tmp_path: Path) -> None:
    data = read_tapvid(dump(tmp_path / "a.pkl", {"a": entry()}))
    assert np.array_equal(data[0].tracks_xy, data[0].tracks_xy)


def test_frames_can_be_resized_while_reading(tmp_path: Path) -> None:
    content = {"a": entry()}
    path = dump(tmp_path / "a.pkl", content)
    small, whole = read_tapvid(path, image_size=(10, 16))[0], read_tapvid(path)[0].resized((10, 16))
    assert np.array_equal(small.video, whole.video)
    assert np.allclose(small.tracks_xy, whole.tracks_xy, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": None}, "no points"),
        ({"points": np.zeros((3, 5, 2))}, r"\[N, 6, 2\]"),
        ({"points": np.zeros((3, 6, 2), int)}, "of floats"),
        ({"occluded": np.zeros((2, 6), bool)}, "occluded"),
        ({"video": np.zeros((6, 20, 40), np.uint8)}, "frame 0"),
        ({"video": np.zeros((6, 20, 40, 3), np.float32)}, "uint8"),
        ({"video": [b"no jpeg"] * 6}, "JPEG"),
        ({"video": []}, "one size"),
        ({"video": [np.zeros((4, 4, 3), np.uint8)] * 5 + [np.zeros((4, 5, 3), np.uint8)]}, "one size"),
        ({"points": np.full((3, 6, 2), np.nan)}, "finite"),
    ],
)
def test_a_broken_video_is_named(tmp_path: Path, change: dict, message: str) -> None:
    broken = {key: value for key, value in {**entry(), **change}.items() if value is not None}
    broken.setdefault("occluded", np.zeros((3, 6), bool))
    data = read_tapvid(dump(tmp_path / "a.pkl", {"good": entry(), "bad": broken}))
    assert data[0].num_frames == 6
    with pytest.raises(DataError, match=message) as caught:
        data[1]
    assert "bad" in str(caught.value)


def test_files_that_are_no_tapvid_pickle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected \.pkl files"):
        read_tapvid(tmp_path)
    with pytest.raises(DataError, match="nowhere"):
        read_tapvid(tmp_path / "nowhere.pkl")
    with pytest.raises(DataError, match="got str"):
        read_tapvid(dump(tmp_path / "text.pkl", "text"))
    data = read_tapvid(dump(tmp_path / "list.pkl", [3]))
    with pytest.raises(DataError, match="video"):
        data[0]


# ---- hostile pickles -------------------------------------------------------------------------------------------------


class Runs:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("where", ["alone", "in a dictionary", "in an array"])
def test_programs_in_pickles_are_not_run(tmp_path: Path, where: str, protocol: int) -> None:
    run = Runs(tmp_path / "ran")
    content = {"alone": run, "in a dictionary": {"a": {"video": run}}, "in an array": np.array([run], object)}[where]
    path = dump(tmp_path / "a.pkl", content, protocol)
    with pytest.raises(DataError, match=r"posix\.system|nt\.system"):
        read_tapvid(path)
    assert not (tmp_path / "ran").exists()
    pickle.loads(path.read_bytes())  # the trap does work
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [OrderedDict(a=1), Path("a"), np.random.default_rng(0), print, np.ma.array([1])])
def test_only_arrays_and_plain_containers_are_read(tmp_path: Path, content: object) -> None:
    with pytest.raises(DataError, match="arrays and plain containers only"):
        load_plain_pickle(dump(tmp_path / "a.pkl", content))


@pytest.mark.parametrize("codec", ["rot13", "zlib_codec", "hex"])
def test_codecs_are_not_open_to_pickles(tmp_path: Path, codec: str) -> None:
    (tmp_path / "a.pkl").write_bytes(b"c_codecs\nencode\n(Vtext\nV" + codec.encode() + b"\ntR.")
    with pytest.raises(DataError, match="encoded"):
        load_plain_pickle(tmp_path / "a.pkl")


def test_plain_contents_come_back(tmp_path: Path) -> None:
    content = {"a": [1, 2.5, None, True, "text", b"bytes"], "b": (np.arange(6).reshape(2, 3).T, {4, 5})}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        if protocol < 3:  # sets were classes then
            content["b"] = content["b"][:1]
        loaded = load_plain_pickle(dump(tmp_path / "a.pkl", content, protocol))
        assert loaded["a"] == content["a"]
        assert np.array_equal(loaded["b"][0], content["b"][0])


def test_damaged_pickles_are_named(tmp_path: Path) -> None:
    whole = pickle.dumps({"a": entry()})
    rng = np.random.default_rng(0)
    path = tmp_path / "a.pkl"
    for cut in (0, 1, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError, match=r"a\.pkl"):
            read_tapvid(path)
    for _ in range(60):  # bytes of the frame before the pixels
        damaged = bytearray(whole)
        for place in rng.integers(0, 150, 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            list(read_tapvid(path))
        except DataError as exc:
            assert "a.pkl" in str(exc) or "a: " in str(exc)  # noqa: PT017


# ---- Perception Test -------------------------------------------------------------------------------------------------


@pytest.fixture
def perception(tmp_path: Path) -> tuple[Path, Path]:
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, num_frames in (("video_1", 6), ("video_2", 6), ("video_3", 4)):
        with VideoWriter(videos / f"{name}.mp4", 30) as writer:
            for frame in smooth(num_frames):
                writer.write(np.ascontiguousarray(frame))

    def annotation(name: str, split: str, num_frames: int, tracks: list) -> dict:
        metadata = {"video_id": name, "split": split, "num_frames": num_frames, "frame_rate": 30.0,
                    "resolution": [32, 48], "is_camera_moving": False}  # fmt: skip
        return {"metadata": metadata, "object_tracking": [], "point_tracking": tracks}

    tracks = [
        {"id": 0, "label": "corner", "parent_objects": [0], "frame_ids": [1, 2, 4],
         "points": [[0.25, 0.5, 0.75], [0.1, 0.2, 0.3]]},
        {"id": 1, "label": "edge", "parent_objects": [1], "frame_ids": [5], "points": [[1.0], [0.0]]},
    ]  # fmt: skip
    content = {
        "video_1": annotation("video_1", "valid", 6, tracks),
        "video_2": annotation("video_2", "valid", 6, []),
        "video_3": annotation("video_3", "train", 5, tracks[:1]),
    }
    (tmp_path / "all.json").write_text(json.dumps(content), encoding="utf-8")
    return tmp_path / "all.json", videos


def test_perception_test(perception: tuple[Path, Path]) -> None:
    content = perception[0].read_text(encoding="utf-8")
    perception[0].write_text(content, encoding="utf-8-sig")  # as Windows' editors do
    data = read_perception_test(*perception, split="valid")
    assert data.names == ("video_1",)
    video = data[0]
    assert np.abs(video.video.astype(int) - smooth(6)).mean() < 8
    assert (~video.occluded).tolist() == [
        [False, True, True, False, True, False],
        [False, False, False, False, False, True],
    ]
    expected = np.array([[0.1, 0.25], [0.2, 0.5], [0.3, 0.75]]) * [48, 32]  # stored as y, x
    assert np.allclose(video.tracks_xy[0, [1, 2, 4]], expected)
    assert video.tracks_xy[1, 5].tolist() == [0, 32]
    small = read_perception_test(*perception, split="valid", image_size=(16, 16))[0]
    assert np.array_equal(small.video[2], resized_frame(video.video[2], (16, 16)))
    assert np.allclose(small.tracks_xy[0, 1], [1.6, 4])


def test_perception_videos_that_do_not_fit(perception: tuple[Path, Path]) -> None:
    data = read_perception_test(*perception)
    assert data.names == ("video_1", "video_3")
    with pytest.raises(DataError, match="expected 5 frames, as in the annotations, got 4"):
        data[1]
    (perception[1] / "video_1.mp4").unlink()
    with pytest.raises(VideoError, match="video_1"):
        data[0]


@pytest.mark.parametrize(
    "track",
    [
        {"frame_ids": [0, 1], "points": [[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]]},
        {"frame_ids": [0, 1, 2], "points": [[0.1, 0.2], [0.1, 0.2], [0.1, 0.2]]},
        {"frame_ids": [0, 6], "points": [[0.1, 0.2], [0.1, 0.2]]},
        {"frame_ids": [-1], "points": [[0.1], [0.2]]},
        {"frame_ids": [0]},
    ],
)
def test_perception_tracks_of_another_layout(perception: tuple[Path, Path], track: dict) -> None:
    content = json.loads(perception[0].read_text(encoding="utf-8"))
    content["video_1"]["point_tracking"] = [track]
    perception[0].write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match="video_1: track 0"):
        read_perception_test(*perception)[0]


@pytest.mark.parametrize("content", ["", "[]", "[1]", '{"a": {"point_tracking": [1]}}', "{}"])
def test_other_annotations_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.json"):
        read_perception_test(tmp_path / "a.json", tmp_path)


# ---- track files -----------------------------------------------------------------------------------------------------


def test_track_files_as_kubric_makes_them(tmp_path: Path) -> None:
    video = smooth(4)
    clip = {
        "video": (video / 127.5 - 1).astype(np.float32),
        "target_points": RNG.uniform(0, 40, (5, 4, 2)).astype(np.float32),
        "occluded": RNG.random((5, 4)) < 0.5,
        "query_points": (queries := RNG.uniform(0, 3, (5, 3)).astype(np.float32)),
    }
    np.savez(tmp_path / "b.npz", **clip)
    np.savez(tmp_path / "a.npz", **{**clip, "video": video})
    del clip["query_points"]
    np.savez(tmp_path / "c.npz", **clip)
    (tmp_path / "._a.npz").write_bytes(b"what macOS leaves beside a file")
    data = read_track_files(tmp_path)
    assert data.names == ("a", "b", "c")
    for tracked in data:
        assert np.array_equal(tracked.video, video)
        assert np.array_equal(tracked.tracks_xy, clip["target_points"])
        assert np.array_equal(tracked.occluded, clip["occluded"])
    assert all(np.array_equal(tracked.query_points_tyx, queries) for tracked in data[:2])
    assert data[2].query_points_tyx is None


def test_other_track_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected \.npz"):
        read_track_files(tmp_path)
    good = {"video": smooth(3), "target_points": np.zeros((2, 3, 2)), "occluded": np.zeros((2, 3), bool)}
    np.savez(tmp_path / "0.npz", video=good["video"])
    np.savez(tmp_path / "1.npz", **{**good, "video": good["video"].astype(np.float32)})
    np.savez(tmp_path / "2.npz", **{**good, "occluded": np.zeros((2, 4), bool)})
    np.savez(tmp_path / "3.npz", **{**good, "target_points": np.array([Runs(tmp_path / "ran")], object)})
    (tmp_path / "4.npz").write_bytes(b"no archive")
    data = read_track_files(tmp_path)
    for number, message in enumerate(["expected the arrays", "-1 to 1", "occluded", "expected the arrays", "4.npz"]):
        with pytest.raises(DataError, match=message):
            data[number]
    assert not (tmp_path / "ran").exists()
