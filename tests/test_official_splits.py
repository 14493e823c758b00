"""Official splits of HMDB51, JHMDB and UCF101, on small files in their layouts and on JHMDB where it is at hand."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from command_line import trecvit

from trecvit.data.layouts import DataSource, read_manifest
from trecvit.data.official_splits import clips_of, find_split_lists
from trecvit.errors import ConfigError, DataError
from trecvit.train.recipe import load_recipe
from trecvit.video.encode import VideoWriter

REAL = Path(os.environ.get("TRECVIT_JHMDB", Path(__file__).parents[2] / "shared/data/jhmdb"))
ODD = ["@20_Rhythm", "Boom__Snap__Clap!_(Challenge)", "a b 1", "Ärger.avi", "1.5 x"]


def hmdb51(root: Path, *, classes=("clap", "sit_up"), suffix=".mp4", lists="splits", videos="videos") -> Path:
    """Two splits of ten clips per class, two per source video: parts 1, 1, 1, 2, 0 by source; names as HMDB51's."""
    for name in classes:
        clips = [f"{odd}_{name}_u_nm_np1_fr_goo_{rank}" for odd in ODD for rank in (0, 1)]
        for split, parts in ((1, "1112 0"), (2, "2111 0")):
            numbers = [number for number in parts.replace(" ", "") for _ in (0, 1)]
            write(
                root / lists / f"{name}_test_split{split}.txt",
                "".join(f"{clip}.avi {number} \r\n" for clip, number in zip(clips, numbers, strict=True)),
            )
        for clip in clips:
            write(root / videos / name / (clip + suffix), clip)
    return root


def ucf101(root: Path, *, index=True) -> Path:
    names = ("ApplyEyeMakeup", "YoYo")
    clips = {
        name: [f"{name}/v_{name}_g{group:02d}_c{rank:02d}" for group in (1, 8, 9) for rank in (1, 2)] for name in names
    }
    train = [f"{clip}.avi {number}" for number, name in enumerate(names, 1) for clip in clips[name][2:]]
    write(root / "lists" / "trainlist01.txt", "\n".join(train) + "\n")
    write(root / "lists" / "testlist01.txt", "\n".join(f"{clip}.avi" for name in names for clip in clips[name][:2]))
    if index:
        write(root / "lists" / "classInd.txt", "1 ApplyEyeMakeup\r\n2 YoYo\r\n")
    for name in names:
        for clip in clips[name]:
            write(root / "UCF-101" / f"{clip}.avi", clip)
    return root


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")


def read(path: Path, **fields):
    return read_manifest(DataSource(path=str(path), **fields))


def labels_of(manifest):
    return {video.name: video.label for video in manifest.videos}


def test_hmdb51_matches_clips_by_class_and_stem(tmp_path):
    root = hmdb51(tmp_path)
    train, test, every = (read(root, split=1, part=part) for part in ("train", "test", "all"))
    assert train.labels == ("clap", "sit_up")
    assert [len(manifest.videos) for manifest in (train, test, every)] == [12, 4, 20]
    assert labels_of(test) == {
        f"{name}/Ärger.avi_{name}_u_nm_np1_fr_goo_{rank}": label
        for label, name in enumerate(train.labels) for rank in (0, 1)
    }  # fmt: skip
    assert all(video.source.read_text(encoding="utf-8") == video.name.split("/", 1)[1] for video in every.videos)
    assert {name: len(names) for name, names in train.skipped.items()} == {"neither_part": 4}
    assert "4 videos that are listed for neither part: clap/1.5 x" in train.remarks()[0]
    assert not every.skipped
    second = read(root, split=2, part="test")
    assert {name.split("/")[1][:5] for name in labels_of(second)} == {"@20_R"}


def test_missing_and_extra_files_are_named(tmp_path):
    root = hmdb51(tmp_path)
    [gone] = (root / "videos/clap").glob("@20*_0.mp4")
    gone.unlink()
    write(root / "videos/clap/new.mp4", "x")
    write(root / "videos/wave/other.mp4", "x")
    manifest = read(root, split=1, part="train")
    assert manifest.missing == ("clap/@20_Rhythm_clap_u_nm_np1_fr_goo_0",)
    assert manifest.skipped["unlisted"] == ["clap/new", "wave/other"]
    assert "2 videos that no list names: clap/new, wave/other" in manifest.remarks()[0]
    assert not read(root, split=1, part="test").missing
    write(root / "videos/clap" / "new.avi", "x")
    with pytest.raises(DataError, match=r"one file for each video, got .*new\.avi and .*new\.mp4"):
        read(root, split=1, part="train")


def test_a_clip_in_two_classes_and_a_clip_as_frames(tmp_path):
    root = hmdb51(tmp_path)
    both = "both_u_nm_np1_fr_goo_0"
    for name in ("clap", "sit_up"):
        for split in (1, 2):
            with (root / f"splits/{name}_test_split{split}.txt").open("a") as file:
                file.write(f"{both}.avi 1\n")
        write(root / "videos" / name / both / "00001.png", "x")
    manifest = read(root, split=1, part="train")
    assert (labels_of(manifest)[f"clap/{both}"], labels_of(manifest)[f"sit_up/{both}"]) == (0, 1)
    assert manifest.videos[-1].source == root / "videos/sit_up" / both
    assert manifest.videos[-1].source.is_dir()


def test_parts_that_contradict_are_refused(tmp_path):
    root = hmdb51(tmp_path)
    for name, line in (("clap", "x.avi 1"), ("sit_up", "x.avi 2")):
        for split in (1, 2):
            with (root / f"splits/{name}_test_split{split}.txt").open("a") as file:
                file.write(f"{line}\n")
    expected = (
        r"sit_up_test_split1.txt, line 11: expected each clip in one part of a split, got x for test here and for "
    )
    with pytest.raises(DataError, match=expected + r"train in .*clap_test_split1.txt, line 11"):
        read(root, split=1, part="all")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "expected `split`, one of 1, 2, got none"),
        ({"split": 1}, "expected `part`, one of train, test, fit, validation, all, got none"),
        ({"split": 3, "part": "test"}, "expected one of the splits 1, 2, got 3"),
        ({"split": 1, "part": "test", "format": "ucf101"}, "expected lists in the form of ucf101, got those of hmdb51"),
        ({"split": 1, "part": "test", "videos": "splits"}, "expected at least one video, found none: 4 are listed"),
    ],
)
def test_what_is_left_out_is_named(tmp_path, monkeypatch, fields, message):
    monkeypatch.chdir(hmdb51(tmp_path))
    with pytest.raises(DataError, match=message):
        read(Path("."), **fields)


def test_fields_of_a_source():
    with pytest.raises(ConfigError, match=r"part: expected one of train, .* got 'tst', did you mean 'test'"):
        DataSource(path="x", split=1, part="tst")
    for split in (0, -1, True):
        with pytest.raises(ConfigError, match="split: expected the number of a split"):
            DataSource(path="x", split=split, part="test")


def test_official_splits_need_their_lists(tmp_path):
    root = hmdb51(tmp_path)
    with pytest.raises(DataError, match=r"official splits of HMDB51, JHMDB .* got none of these files"):
        read(root / "videos", split=1, part="test")
    assert len(read(root / "videos").videos) == 20
    (root / "splits/clap_test_split2.txt").unlink()
    with pytest.raises(DataError, match="expected a list of each class for split 2, got none of clap"):
        read(root, split=2, part="test")
    write(root / "splits/clap_test_split1.txt", "a.avi 3\n")
    with pytest.raises(DataError, match=r"line 1: expected a clip and 1 \(training\), 2 \(test\) or 0"):
        read(root, split=1, part="test")


def test_folders_of_lists_and_videos(tmp_path):
    deep = hmdb51(tmp_path / "a", lists="testTrainMulti_7030_splits", videos="hmdb51_org")
    assert len(read(deep / "testTrainMulti_7030_splits", split=1, part="train").videos) == 12
    flat = hmdb51(tmp_path / "b", lists=".", videos=".")
    assert len(read(flat, split=1, part="train").videos) == 12
    twice = hmdb51(hmdb51(tmp_path / "c"), videos="smaller")
    with pytest.raises(DataError, match=r"got .*smaller and .*videos; choose one with `videos`"):
        read(twice, split=1, part="train")
    assert len(read(twice, split=1, part="train", videos=str(twice / "smaller")).videos) == 12
    two_lists = hmdb51(hmdb51(tmp_path / "d"), lists="others")
    with pytest.raises(DataError, match="expected the lists of one data set"):
        read(two_lists, split=1, part="train")
    for video in (tmp_path / "a" / "hmdb51_org").rglob("*.mp4"):
        video.unlink()
    with pytest.raises(DataError, match="give it with `videos`"):
        read(deep, split=1, part="train")


def test_labels_give_the_order(tmp_path):
    root = hmdb51(tmp_path)
    write(tmp_path / "names.txt", "sit_up\nclap\n")
    manifest = read(root, split=1, part="test", labels=str(tmp_path / "names.txt"))
    assert labels_of(manifest)["clap/Ärger.avi_clap_u_nm_np1_fr_goo_0"] == 1
    write(tmp_path / "names.txt", "clap\nwalk\n")
    with pytest.raises(DataError, match="expected one of 2 classes, got 'sit_up'"):
        read(root, split=1, part="test", labels=str(tmp_path / "names.txt"))


def test_validation_takes_whole_source_videos_of_the_training_clips(tmp_path):
    root = hmdb51(tmp_path)
    parts = {part: set(labels_of(read(root, split=1, part=part))) for part in ("train", "test", "fit", "validation")}
    assert parts["fit"] | parts["validation"] == parts["train"]
    assert not parts["fit"] & parts["validation"]
    assert Counter(name.split("/")[0] for name in parts["validation"]) == {"clap": 2, "sit_up": 2}
    assert len({name.split("/")[1].rsplit("_", 7)[0] for name in parts["validation"] if name.startswith("clap")}) == 1


@pytest.mark.parametrize("index", [True, False])
def test_ucf101(tmp_path, index):
    root = ucf101(tmp_path, index=index)
    train = read(root, split=1, part="train")
    assert train.labels == ("ApplyEyeMakeup", "YoYo")
    assert labels_of(read(root, split=1, part="test")) == {
        f"{name}/v_{name}_g01_c0{rank}": label for label, name in enumerate(train.labels) for rank in (1, 2)
    }
    assert labels_of(read(root / "lists/trainlist01.txt")) == labels_of(train)
    assert len(read(root / "lists/testlist01.txt", split=1, part="test").videos) == 4
    with pytest.raises(DataError, match=r"that the file's name gives \(1, train\), got 1 and test"):
        read(root / "lists/trainlist01.txt", split=1, part="test")
    assert [len(read(root, split=1, part=part).videos) for part in ("fit", "validation", "all")] == [4, 4, 12]


def test_lists_of_ucf101_that_do_not_fit(tmp_path):
    root = ucf101(tmp_path)
    write(root / "lists/trainlist01.txt", "YoYo/v_YoYo_g08_c01.avi 1\n")
    with pytest.raises(
        DataError, match=r"trainlist01.txt, line 1: expected a class of classInd.txt with its index 2, got"
    ):
        read(root, split=1, part="train")
    write(root / "lists/trainlist01.txt", "v_YoYo_g08_c01.avi 2\n")
    with pytest.raises(DataError, match=r"line 1: expected Class/clip\.avi and its class index"):
        read(root, split=1, part="train")
    write(root / "lists/trainlist01.txt", "YoYo/v_YoYo_g01_c01.avi 2\n")
    with pytest.raises(DataError, match="expected each clip in one part of a split, got v_YoYo_g01_c01 for train here"):
        read(root, split=1, part="train")
    write(root / "lists/classInd.txt", "1 YoYo\n3 ApplyEyeMakeup\n")
    with pytest.raises(DataError, match=r"classInd\.txt, line 2: expected the index 2 and a new class, got '3 App"):
        read(root, split=1, part="train")
    write(root / "lists/classInd.txt", "1 ApplyEyeMakeup\n2 YoYo\n")
    (root / "lists/testlist01.txt").unlink()
    with pytest.raises(DataError, match=r"expected testlist01.txt, got no such file"):
        read(root, split=1, part="train")


def rendered(root: Path) -> Path:
    """HMDB51's layout with real files: grey clips that brighten or darken."""
    for path in hmdb51(root, suffix=".mkv").rglob("*.mkv"):
        brighter = path.parent.name == "clap"
        with VideoWriter(path, 12) as writer:
            for frame in range(4):
                shade = hash_shade(path.stem) + (10 * frame if brighter else -10 * frame)
                writer.write(np.full((32, 32, 3), shade, np.uint8))
    return root


def hash_shade(text: str) -> int:
    return 60 + sum(text.encode()) % 120


def test_the_check_reads_both_parts_and_names_what_is_missing(tmp_path):
    root = rendered(tmp_path / "data")
    done = trecvit("data", "check", root, "--split", 1, "--to", tmp_path / "checked", "--workers", 1)
    report = json.loads((tmp_path / "checked/report.json").read_text())
    assert (done.returncode, report["listed"], report["good"]) == (0, 20, 20), done.stderr
    [gone] = (root / "videos/clap").glob("@20*_0.mkv")
    gone.rename(gone.with_name("else.mkv"))
    done = trecvit("data", "check", root, "--split", 1, "--part", "train", "--to", tmp_path / "checked")
    report = json.loads((tmp_path / "checked/report.json").read_text())
    assert done.returncode == 1
    assert report["missing"] == ["clap/@20_Rhythm_clap_u_nm_np1_fr_goo_0"]
    assert report["passed_over"]["unlisted"] == ["clap/else"]
    assert report["good"] == 11


def test_a_recipe_names_split_and_part(tmp_path):
    root = hmdb51(tmp_path)
    recipe = load_recipe(
        "world_files",
        [
            f"videos.train={{path: {root}, split: 1, part: fit}}",
            f"videos.validation={{path: {root}, split: 1, part: test}}",
        ],
    )
    videos = recipe.task.clips
    assert (videos.train.part, videos.validation.split) == ("fit", 1)
    assert recipe.to_dict()["videos"]["train"]["split"] == 1


@pytest.mark.slow
def test_finetuning_holds_out_training_clips_and_the_test_part_is_for_the_end(tmp_path):
    root = rendered(tmp_path / "data")
    words = ("--epochs", 1, "--batch-size", 4, "--workers", 0, "--device", "cpu")
    done = trecvit("finetune", "--data", root, "--split", 1, "--to", tmp_path / "run", *words)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run/evaluation/result.json").read_text())
    assert (result["good"], result["protocol"]["data"].endswith("split 1, validation")) == (4, True)
    done = trecvit("eval", "videos", root, "--split", 1, "--model", tmp_path / "run/model", "--to", tmp_path / "test",
                   "--clips", 1, "--crops", 1, "--workers", 0)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "test/result.json").read_text())["good"] == 4


@pytest.mark.skipif(not REAL.is_dir(), reason="JHMDB is not at hand: TRECVIT_JHMDB names its folder")
@pytest.mark.parametrize(("split", "num_train", "num_test"), [(1, 660, 268), (2, 658, 270), (3, 663, 265)])
def test_jhmdb(split, num_train, num_test):
    train, test = (read(REAL, split=split, part=part) for part in ("train", "test"))
    assert (len(train.videos), len(test.videos), train.num_classes) == (num_train, num_test, 21)
    assert not train.missing + test.missing
    assert not {**train.skipped, **test.skipped}
    _, clips = find_split_lists(REAL).read(split)
    sources = [
        {clip.stem.rsplit("_", 6)[0] for clip in clips_of(clips, part)} for part in ("fit", "validation", "test")
    ]
    assert not sources[0] & sources[1]
    assert not sources[2] & (sources[0] | sources[1])
    assert 0.15 < len(clips_of(clips, "validation")) / num_train < 0.25
    assert read_manifest(DataSource(path=str(REAL), split=split, part="all")).videos[0].num_bytes > 1000
