"""BADJA's joints and TAP-Vid's first and last points: layouts, metrics beside slow references, comparison, pictures."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from command_line import trecvit
from models import tiny_tracker

from paper import tables
from trecvit.data.sparse_tracks import BADJA_JOINTS, SparseTracks, SparseVideos, read_badja, read_first_last
from trecvit.data.tracked import TrackedVideo
from trecvit.errors import DataError
from trecvit.evaluate.sparse_points import (
    Predicted,
    compare_on_sparse,
    draw_comparison,
    last_frame,
    pck_t,
    predict,
    to_dict,
)
from trecvit.video.draw import draw_truth

REAL = Path(os.environ.get("TRECVIT_DAVIS", Path(__file__).parents[2] / "shared/data/davis"))
RNG = np.random.default_rng(0)
HEIGHT, WIDTH, NUM_FRAMES = 54, 96, 9
SPEED_PX = 4  # the square's, to the right, in each frame of 96 pixels


def moving_square(folder: Path, num_frames: int = NUM_FRAMES, masks: Path | None = None) -> None:
    """Frames `00000.png` … of a textured square of 20 pixels that moves to the right, and its masks."""
    texture = RNG.integers(0, 256, (20, 20, 3), np.uint8)
    for frame in range(num_frames):
        picture, mask = np.full((HEIGHT, WIDTH, 3), 90, np.uint8), np.zeros((HEIGHT, WIDTH), np.uint8)
        columns = slice(10 + SPEED_PX * frame, 30 + SPEED_PX * frame)
        picture[15:35, columns], mask[15:35, columns] = texture, 38
        for to, image in ((folder, picture), (masks, mask)):
            if to is not None:
                to.mkdir(parents=True, exist_ok=True)
                PIL.Image.fromarray(image).save(to / f"{frame:05d}.png")


def badja(root: Path, annotated=(2, 5, 8), name: str = "dog") -> Path:
    """BADJA's folder with one animal, the square: joint k at row 20 + k / 4 and column 12 + k / 4 of frame 0."""
    moving_square(
        root / "DAVIS/JPEGImages/Full-Resolution" / name, masks=root / "DAVIS/Annotations/Full-Resolution" / name
    )
    entries = []
    for frame in annotated:
        joints, visibility = np.zeros((37, 2), int), np.zeros(37, bool)
        for rank, joint in enumerate(BADJA_JOINTS):
            joints[joint] = (20 * (17 + rank / 2), 20 * (12 + rank / 2 + SPEED_PX * frame))
            visibility[joint] = rank < 16 or frame != annotated[0]
        joints[34], visibility[34] = (1, 1), True
        if frame == annotated[0]:
            joints[BADJA_JOINTS[-1]] = 0
        path = f"Full-Resolution/{name}/{frame:05d}"
        entries.append(
            {
                "image_path": f"DAVIS/JPEGImages/{path}.jpg",
                "segmentation_path": f"DAVIS/Annotations/{path}.png",
                "joints": joints.tolist(),
                "visibility": visibility.tolist(),
            }
        )
    (root / "joint_annotations").mkdir(parents=True, exist_ok=True)
    (root / f"joint_annotations/{name}.json").write_text(json.dumps(entries))
    return root / "joint_annotations"


TABLE = (
    "video_idx,query_frame,point_idx,query_x,query_y,track_start_x,track_end_x,track_end_y,visible_frames,total_frames"
)


def first_last(root: Path, *, last: str = "462.5833333,240.0") -> Path:
    """A table of two videos: one at hand with a point that moves with the square and one hidden at the end."""
    moving_square(root / "frames/square")
    (root / "video_names.json").write_text('["gone", "square"]')
    rows = [f"1,0,0,177.9166667,240.0,177.9166667,{last},9,9", "1,0,1,200,250,200,0.0,0.0,4,9", "0,0,0,1,1,1,2,2,3,50"]
    (root / "points.csv").write_text("\n".join([TABLE, *rows]) + "\n")
    return root / "points.csv"


def test_badja_as_it_lies_on_disk(tmp_path):
    videos = read_badja(badja(tmp_path))
    assert (list(videos.readers), dict(videos.left_out)) == (["dog"], {})
    tracks = videos.readers["dog"]()
    assert tracks.frames == (0, 3, 6)
    assert tracks.video.video.shape == (7, HEIGHT, WIDTH, 3)
    shares = 20 * 20 / (HEIGHT * WIDTH)
    assert tracks.mask_shares is not None
    assert tracks.mask_shares == pytest.approx([shares] * 3)
    # Row 17 and column 12 + 8 of the small frames, up to the half pixel of the large ones.
    assert tracks.video.tracks_xy[0, 0] == pytest.approx([20 + 0.025, 17 + 0.025])
    assert tracks.video.tracks_xy[0, 6] == pytest.approx([44 + 0.025, 17 + 0.025])
    assert tracks.video.occluded[:, [0, 3, 6]].sum(axis=0).tolist() == [4, 0, 0]
    assert tracks.video.occluded[:, [1, 2, 4, 5]].all()


def test_badja_with_folders_of_its_own_and_what_is_left_out(tmp_path):
    annotations = badja(tmp_path / "there")
    for name in ("bear", "cat"):
        (annotations / f"{name}.json").write_text((annotations / "dog.json").read_text())
    frames, masks = tmp_path / "frames", tmp_path / "masks"
    moving_square(frames / "dog", masks=masks / "dog")
    moving_square(frames / "bear")
    videos = read_badja(annotations, frames=frames, masks=masks)
    assert list(videos.readers) == ["dog"]
    assert "no mask for 3 of 3 frames, such as" in videos.left_out["bear"]
    assert videos.left_out["cat"] == f"no frames in {frames / 'cat'}"
    whole, apart = read_badja(badja(tmp_path / "there")).readers["dog"](), videos.readers["dog"]()
    assert (whole.video.tracks_xy == apart.video.tracks_xy).all()
    (frames / "dog/00005.png").unlink()
    with pytest.raises(DataError, match="expected the frame 00005, as in the annotations"):
        videos.readers["dog"]()
    (masks / "dog/00005.png").write_bytes(b"x")
    (frames / "dog/00005.png").write_bytes((frames / "dog/00004.png").read_bytes())
    with pytest.raises(DataError, match=r"00005\.png: expected a mask as a picture"):
        videos.readers["dog"]()
    (masks / "dog/00008.png").unlink()
    with pytest.raises(DataError, match="expected at least one video, got none: bear: no mask"):
        read_badja(annotations, frames=frames, masks=masks)


def test_animals_off_davis_have_joints_in_pixels_of_their_frames(tmp_path):
    annotations = badja(tmp_path)
    file = annotations / "dog.json"
    entries = json.loads(file.read_text().replace("DAVIS/JPEGImages/Full-Resolution/dog", "extra_videos/dog/rgb"))
    for entry in entries:
        entry["joints"] = (np.array(entry["joints"]) // 20).tolist()
    file.write_text(json.dumps(entries))
    moving_square(tmp_path / "extra_videos/dog/rgb")
    tracks = read_badja(annotations).readers["dog"]()
    assert tracks.video.tracks_xy[0, 0] == pytest.approx([20.5, 17.5])


@pytest.mark.parametrize(
    "change",
    [
        lambda entries: entries[0].pop("visibility"),
        lambda entries: entries[0].update(joints=[[0, 0]]),
        lambda entries: entries[0].update(visibility=[1] * 37),
        lambda entries: entries[0].update(image_path="a/b.jpg"),
        lambda entries: entries.__setitem__(0, 3),
    ],
)
def test_other_json_is_refused(tmp_path, change):
    file = badja(tmp_path) / "dog.json"
    entries = json.loads(file.read_text())
    change(entries)
    file.write_text(json.dumps(entries))
    with pytest.raises(DataError, match=r"dog\.json: expected a list of objects with image_path"):
        read_badja(file.parent)


def test_badja_needs_files_and_frames(tmp_path):
    with pytest.raises(DataError, match=r"expected a folder with BADJA's \.json files"):
        read_badja(tmp_path)
    file = badja(tmp_path) / "dog.json"
    file.write_text(json.dumps(json.loads(file.read_text())[:1]))
    with pytest.raises(DataError, match="expected two or more frames, each once, got 1"):
        read_badja(file.parent)


def test_first_and_last(tmp_path):
    videos = read_first_last(first_last(tmp_path), frames=tmp_path / "frames")
    assert (list(videos.readers), dict(videos.left_out)) == (
        ["square"], {"gone": f"no frames in {tmp_path / 'frames/gone'}"}
    )  # fmt: skip
    tracks = videos.readers["square"]()
    assert tracks.frames == (0, 8)
    assert tracks.video.tracks_xy[0, [0, 8]] == pytest.approx(np.array([[20, 27], [52, 27]]), abs=1e-4)
    assert tracks.video.occluded[:, [0, 8]].tolist() == [[False, False], [False, True]]
    assert tracks.video.occluded[:, 1:8].all()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("track_end_x", "end_x", "expected the columns .* got no track_end_x"),
        ("1,0,1,200", "7,0,1,200", r"line 3: expected a video's index and numbers, .*video 7 of 2"),
        ("1,0,1,200", "1,0,1,nan", "line 3: expected a video's index and numbers"),
        ("1,0,1,200", "1,2,1,200", "square: expected one query frame before the last"),
        (",9,9\n", ",9,8\n", "square: expected one query frame before the last and one number of frames"),
    ],
)
def test_other_tables_are_refused(tmp_path, old, new, message):
    table = first_last(tmp_path)
    table.write_text(table.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        read_first_last(table, frames=tmp_path / "frames")


def test_a_table_needs_names_and_all_frames(tmp_path):
    table = first_last(tmp_path)
    (tmp_path / "frames/square/00008.png").unlink()
    with pytest.raises(DataError, match=r"expected 9 frames, as in .* got 8"):
        read_first_last(table, frames=tmp_path / "frames").readers["square"]()
    names = (tmp_path / "video_names.json").rename(tmp_path / "list.json")
    with pytest.raises(DataError, match=r"expected one \*names.json beside it"):
        read_first_last(table, frames=tmp_path / "frames")
    assert list(read_first_last(table, frames=tmp_path / "frames", names=names).readers) == ["square"]
    names.write_text("{}")
    with pytest.raises(DataError, match="expected a JSON list of the videos' names"):
        read_first_last(table, frames=tmp_path / "frames", names=names)


def test_the_check_reads_them_all(tmp_path):
    annotations = badja(tmp_path / "badja")
    done = trecvit("data", "check", annotations, "--to", tmp_path / "checked")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "checked/report.json").read_text())
    expected = {"name": "dog", "frames": 7, "points": 20, "annotated_frames": 3, "visible": 56, "outside": 0}
    assert report["videos"] == [expected]
    (tmp_path / "badja/DAVIS/JPEGImages/Full-Resolution/dog/00004.png").write_bytes(b"x")
    done = trecvit("data", "check", annotations, "--to", tmp_path / "checked")
    assert (done.returncode, "dog: " in done.stderr) == (1, True)
    table = first_last(tmp_path / "tapvid")
    done = trecvit("data", "check", table, "--to", tmp_path / "checked", "--videos", tmp_path / "tapvid/frames")
    assert (done.returncode, "gone: no frames in" in done.stderr) == (1, True)
    report = json.loads((tmp_path / "checked/report.json").read_text())
    assert (report["listed"], report["good"], report["frames"]) == (2, 1, 9)
    table.write_text(table.read_text().replace("462.5833333", "900.0"))
    trecvit("data", "check", table, "--to", tmp_path / "checked", "--videos", tmp_path / "tapvid/frames")
    assert json.loads((tmp_path / "checked/report.json").read_text())["videos"][0]["outside"] == 1
    done = trecvit("data", "check", table, "--to", tmp_path / "checked")
    assert "expected `videos`, the folder of the frames of each video" in " ".join(done.stderr.split())


def random_tracks(seed: int, num_points: int = 7, frames=(0, 2, 5)) -> tuple[SparseTracks, Predicted]:
    rng = np.random.default_rng(seed)
    tracks = rng.uniform(0, 1, (num_points, 6, 2)).astype(np.float32) * np.float32([WIDTH, HEIGHT])
    occluded = rng.random((num_points, 6)) < 0.4
    occluded[:2, 0] = False, True
    occluded[:2, 5] = False
    video = TrackedVideo(name="x", video=np.zeros((6, HEIGHT, WIDTH, 3), np.uint8), tracks_xy=tracks, occluded=occluded)
    truth = tracks[:, frames] / (WIDTH, HEIGHT)
    predicted = Predicted(truth + rng.normal(0, 0.05, truth.shape), rng.random(truth.shape[:2]) < 0.5)
    return SparseTracks(video=video, frames=frames, mask_shares=rng.uniform(0.01, 0.2, len(frames))), predicted


@pytest.mark.parametrize("seed", range(5))
def test_pck_t_beside_its_definition(seed):
    tracks, predicted = random_tracks(seed)
    right, right_of_all = [], []
    for point in range(7):
        for column, frame in enumerate(tracks.frames):
            if column == 0 or tracks.video.occluded[point, frame]:
                continue
            x, y = tracks.video.tracks_xy[point, frame]
            dx = predicted.points_xy[point, column, 0] * 512 - x * 512 / WIDTH
            dy = predicted.points_xy[point, column, 1] * 320 - y * 320 / HEIGHT
            area_px = tracks.mask_shares[column] * 512 * 320
            correct = math.hypot(dx, dy) < 0.2 * math.sqrt(area_px)
            right_of_all.append(correct)
            if not tracks.video.occluded[point, 0]:
                right.append(correct)
    assert 0 < sum(right_of_all) < len(right_of_all)
    assert pck_t(tracks, predicted) == {
        "pck_t": pytest.approx(sum(right) / len(right)),
        "pck_t_all": pytest.approx(sum(right_of_all) / len(right_of_all)),
    }


@pytest.mark.parametrize("seed", range(5))
def test_last_frames_beside_their_definition(seed):
    tracks, predicted = random_tracks(0, frames=(0, 5))
    metrics = last_frame(tracks, predicted)
    errors = [
        math.hypot(*((predicted.points_xy[point, 1] - tracks.video.tracks_xy[point, 5] / (WIDTH, HEIGHT)) * 256))
        for point in range(7)
    ]
    seen = [point for point in range(7) if not tracks.video.occluded[point, 5]]
    for px in (1, 2, 4, 8, 16):
        assert metrics[f"pts_within_{px}"] == pytest.approx(sum(errors[point] < px for point in seen) / len(seen))
    agree = [predicted.visible[point, 1] != tracks.video.occluded[point, 5] for point in range(7)]
    assert metrics["occlusion_accuracy"] == pytest.approx(sum(agree) / 7)


def test_what_cannot_be_scored():
    tracks, predicted = random_tracks(0)
    with pytest.raises(DataError, match="expected a mask for each annotated frame"):
        pck_t(SparseTracks(video=tracks.video, frames=tracks.frames), predicted)
    tracks.video.occluded[:, 0] = True
    with pytest.raises(DataError, match="joints that are visible in the first frame and later, got none"):
        pck_t(tracks, predicted)
    tracks.video.occluded[:] = True
    assert math.isnan(last_frame(tracks, predicted)["pts_within_4"])


def test_hidden_starts_do_not_change_the_other_predictions(tmp_path):
    tracks = read_badja(badja(tmp_path)).readers["dog"]()
    network = tiny_tracker()
    size = network.preprocessing.image_size
    both = predict(network, tracks, size, "cpu")
    starts = ~tracks.video.occluded[:, 0]
    video = TrackedVideo(
        name="x",
        video=tracks.video.video,
        tracks_xy=tracks.video.tracks_xy[starts],
        occluded=tracks.video.occluded[starts],
    )
    alone = predict(network, SparseTracks(video=video, frames=tracks.frames), size, "cpu")
    assert both.points_xy[starts] == pytest.approx(alone.points_xy, abs=1e-6)
    assert both.points_xy.shape == (20, 3, 2)


def test_the_comparison_lists_every_video_and_draws_it(tmp_path):
    pytest.importorskip("cv2")
    videos = read_badja(badja(tmp_path))
    broken = SparseVideos("x", {**videos.readers, "broken": lambda: _refuse()}, {"cat": "no frames"})
    scores = compare_on_sparse(tiny_tracker(), "tiny", broken, pck_t, pictures=tmp_path / "pictures")
    assert scores.trackers == ("tiny", "still points", "Lucas–Kanade")
    assert scores.videos == ("dog",)
    assert [failure.name for failure in scores.failures] == ["broken"]
    # The square moves 12 and 24 of 96 pixels; a fifth of the root of its area is 4.
    assert scores.means("still points") == {"pck_t": 0, "pck_t_all": 0}
    assert scores.means("Lucas–Kanade")["pck_t"] > 0.9
    assert scores.means("Lucas–Kanade")["pck_t_all"] < scores.means("Lucas–Kanade")["pck_t"]
    content = to_dict(scores, broken, test="x", metrics=["pck_t"])
    assert content["left_out"] == {"cat": "no frames"}
    assert json.loads(json.dumps(content, allow_nan=False))["per_video"][1] == {
        "video": "dog", "tracker": "still points", "pck_t": 0.0
    }  # fmt: skip
    with PIL.Image.open(tmp_path / "pictures/dog.png") as picture:
        assert picture.width > 3 * 400


def _refuse() -> SparseTracks:
    raise DataError("it is broken")


def test_a_picture_shows_each_tracker_beside_the_annotation(tmp_path):
    tracks = read_first_last(first_last(tmp_path), frames=tmp_path / "frames").readers["square"]()
    truth = tracks.video.tracks_xy[:, tracks.frames].astype(float) / (WIDTH, HEIGHT)
    right = Predicted(truth, np.ones(truth.shape[:2], bool))
    wrong = Predicted(truth * 0 + 0.9, np.ones(truth.shape[:2], bool))
    same, other = (draw_comparison(tracks, {"a": right, "b": second}) for second in (right, wrong))
    half = len(same) // 2
    assert same.shape == other.shape
    assert (same[:half] == other[:half]).all()
    assert (same[half:] != other[half:]).any()


def test_the_command_on_both(tmp_path):
    pytest.importorskip("cv2")
    tiny_tracker().save(tmp_path / "tiny")
    annotations = badja(tmp_path / "badja")
    words = ("--model", tmp_path / "tiny", "--save", tmp_path / "result.json")
    done = trecvit("eval", "points", "--badja", annotations, *words, "--pictures", tmp_path / "pictures")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pictures/dog.png").is_file()
    assert "Lucas–Kanade" in done.stdout
    table = first_last(tmp_path / "tapvid")
    done = trecvit("eval", "points", "--first-last", table, "--videos", tmp_path / "tapvid/frames", *words)
    assert done.returncode == 0, done.stderr
    assert "left out: gone: no frames in" in done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    means = result["means"]
    assert means["still points"]["occlusion_accuracy"] == 0.5
    assert means["still points"]["pts_within_16"] == 0
    assert means["Lucas–Kanade"]["pts_within_4"] == 1
    assert tables.last_frames(result).splitlines()[3].startswith("| static baseline | 0.0 % | 0.0 % |")
    for options, message in (
        (["--badja", annotations, "--first-last", table], "expected one of RECIPE, --badja and --first-last"),
        ([], "expected one of RECIPE, --badja and --first-last"),
        (["--first-last", table], "--first-last: expected --videos"),
        (["track_world", "--videos", tmp_path], "expected --badja or --first-last with them, got a recipe"),
    ):
        done = trecvit("eval", "points", *options, *words)
        assert (done.returncode, message in " ".join(done.stderr.split())) == (1, True), done.stderr


@pytest.mark.skipif(not REAL.is_dir(), reason="DAVIS is not at hand: TRECVIT_DAVIS names its folder")
def test_davis_annotations():
    videos = read_badja(REAL / "badja", frames=REAL / "frames", masks=REAL / "masks")
    assert list(videos.readers) == ["camel", "cows", "dog", "horsejump-high"]
    assert "no mask for 17 of 17 frames" in videos.left_out["bear"]
    dog = videos.readers["dog"]()
    assert (len(dog.frames), dog.video.num_frames) == (12, 53)
    # Joints lie on the animal: inside the bounding box of its mask, most of them.
    with PIL.Image.open(REAL / "masks/dog/00003.png") as mask:
        rows, columns = np.nonzero(np.asarray(mask))
    x, y = dog.video.tracks_xy[~dog.video.occluded[:, 0], 0].T
    assert ((x > columns.min() - 6) & (x < columns.max() + 6) & (y > rows.min() - 6) & (y < rows.max() + 6)).all()
    videos = read_first_last(REAL / "tapvid_benchmark_points.csv", frames=REAL / "frames")
    assert (len(videos.readers), len(videos.left_out)) == (20, 10)
    tracks = [videos.readers[name]() for name in ("goat", "dog")]
    assert all((track.video.tracks_xy[~track.video.occluded] <= track.video.video.shape[2]).all() for track in tracks)


def test_crosses_at_once_are_crosses_one_after_the_other():
    grey = np.full((120, 200, 3), 90, np.uint8)
    places = np.array([[40.0, 50.0], [150.5, 60.0]])
    assert (draw_truth(grey, places, True) == draw_truth(draw_truth(grey, places[0], True), places[1], True)).all()
    assert (draw_truth(grey, places[:0], True) == grey).all()
