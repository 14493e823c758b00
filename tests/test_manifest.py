from __future__ import annotations

import errno
import http.server
import io
import json
import os
import tarfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from trecvit.data.class_names import class_names, label_hash, read_labels
from trecvit.data.folders import split_folders
from trecvit.data.layouts import DataSource, read_list, read_manifest, read_unlabelled, shard_paths, split_of
from trecvit.data.manifest import NO_LABEL
from trecvit.data.path_lists import write_list
from trecvit.data.shards import write_shards
from trecvit.errors import ConfigError, DataError, StorageError
from trecvit.files import write_json
from trecvit.video.decode import read_frames
from trecvit.video.encode import VideoWriter
from trecvit.video.sources import FilePart


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def write_video(path: Path, shade: int, frames: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, 12) as writer:
        for _ in range(frames):
            writer.write(np.full((32, 32, 3), shade, np.uint8))


def as_pairs(manifest):
    return [(video.name, video.label) for video in manifest.videos]


KINETICS = "label,youtube_id,time_start,time_end,split\n"


@pytest.mark.parametrize("nested", [False, True])
def test_kinetics(tmp_path, nested):
    (tmp_path / "train.csv").write_text(
        KINETICS + "zumba,-a_b,7,17,train\nabseiling,xyz,120,130,train\narchery,gone,0,10,train\n"
    )
    folders = ("videos/zumba", "videos/abseiling") if nested else ("videos", "videos")
    touch(tmp_path / folders[0] / "-a_b_000007_000017.mp4", tmp_path / folders[1] / "xyz_000120_000130.mkv")
    manifest = read_manifest(tmp_path / "train.csv")
    assert manifest.labels == class_names("kinetics400")
    assert as_pairs(manifest) == [("-a_b_000007_000017", 399), ("xyz_000120_000130", 0)]
    assert manifest.missing == ("gone_000000_000010",)
    assert manifest.num_classes == 400


def test_kinetics_with_other_classes_and_without_any(tmp_path):
    touch(tmp_path / "a_000000_000010.mp4", tmp_path / "b_000000_000010.mp4")
    csv = tmp_path / "k.csv"
    csv.write_text(KINETICS + "walking my cat,a,0,10,train\narchery,b,0,10,train\n")
    manifest = read_manifest(csv)
    assert manifest.labels == ("archery", "walking my cat")
    assert [label for _, label in as_pairs(manifest)] == [1, 0]
    with pytest.raises(DataError, match="expected one of 400 classes, got 'walking my cat'"):
        read_manifest(DataSource(path=str(csv), labels="kinetics400"))
    csv.write_text("youtube_id,time_start,time_end,split\na,0,10,test\n")
    assert as_pairs(read_manifest(csv)) == [("a_000000_000010", NO_LABEL)]
    csv.write_text(KINETICS + "archery,a,x,10,train\n")
    with pytest.raises(DataError, match="line 2: expected whole seconds"):
        read_manifest(csv)


def something(folder: Path, entries, labels=None) -> Path:
    touch(*(folder / "videos" / f"{entry['id']}.webm" for entry in entries))
    (folder / "train.json").write_text(json.dumps(entries))
    if labels:
        (folder / "labels.json").write_text(json.dumps(labels))
    return folder / "train.json"


def test_something_something(tmp_path):
    names = class_names("something_something_v2")
    entries = [
        {"id": "7", "label": "holding a cup", "template": "Holding [something]", "placeholders": ["a cup"]},
        {"id": "9", "label": "x", "template": "Pushing [something] from left to right", "placeholders": ["x"]},
        {"id": "11"},
    ]
    manifest = read_manifest(something(tmp_path, entries))
    assert manifest.labels == names
    expected = [names.index("Holding something"), names.index("Pushing something from left to right"), NO_LABEL]
    assert as_pairs(manifest) == list(zip(["7", "9", "11"], expected, strict=True))


def test_something_something_with_labels_of_its_own(tmp_path):
    entries = [{"id": "1", "template": "turning [this]"}, {"id": "2", "template": "rising"}]
    manifest = read_manifest(something(tmp_path, entries, {"rising": "1", "turning [this]": "0"}))
    assert manifest.labels == ("turning this", "rising")
    assert as_pairs(manifest) == [("1", 0), ("2", 1)]
    (tmp_path / "train.json").write_text(json.dumps([{"id": "1", "template": "risin"}]))
    with pytest.raises(DataError, match="entry 0: expected one of 2 classes, got 'risin', did you mean 'rising'"):
        read_manifest(tmp_path / "train.json")


def test_lists_keep_their_paths_whole(tmp_path):
    names = ["a.mp4", "with space.mp4", "comma, and space.mp4", "tab\there.mp4", "7.mp4", "sub/deep er/b 3.webm"]
    touch(*(tmp_path / name for name in names))
    (tmp_path / "frames").mkdir()
    lines = [
        "a.mp4 3", "with space.mp4 0", "comma, and space.mp4,12", "tab\there.mp4\t1", "7.mp4 7",
        "sub/deep er/b 3.webm 5", "", "frames 2", "not there.mp4 1",
    ]  # fmt: skip
    (tmp_path / "list.txt").write_text("\r\n".join(lines) + "\n")
    manifest = read_manifest(tmp_path / "list.txt")
    assert as_pairs(manifest) == [*zip(names, [3, 0, 12, 1, 7, 5], strict=True), ("frames", 2)]
    assert manifest.missing == ("not there.mp4",)
    assert manifest.labels == ()
    assert manifest.num_classes == 13
    elsewhere = tmp_path / "lists" / "list.csv"
    elsewhere.parent.mkdir()
    elsewhere.write_text(f'"{tmp_path / "a.mp4"}",3\n7.mp4 7\n')
    manifest = read_list(elsewhere, tmp_path)
    assert [video.source for video in manifest.videos] == [tmp_path / "a.mp4", tmp_path / "7.mp4"]


def test_lists_without_classes_where_none_are_needed(tmp_path):
    touch(tmp_path / "a.mp4", tmp_path / "b c.mp4", tmp_path / "d.mp4")
    (tmp_path / "list.txt").write_text('a.mp4\n\n"b c.mp4"\nd.mp4 7\ngone.mp4\n')
    manifest = read_unlabelled(tmp_path / "list.txt")
    assert as_pairs(manifest) == [("a.mp4", -1), ("b c.mp4", -1), ("d.mp4", -1)]
    assert manifest.missing == ("gone.mp4",)
    assert read_manifest(DataSource(path=str(tmp_path / "list.txt"), format="unlabelled")) == manifest
    with pytest.raises(DataError, match="expected a path and a class index, got 'a"):
        read_manifest(tmp_path / "list.txt")
    (tmp_path / "pairs.txt").write_text("a.mp4 0\nd.mp4 1\n")
    write_shards(read_manifest(tmp_path / "pairs.txt"), tmp_path / "shards")
    assert read_unlabelled(tmp_path / "shards") == read_manifest(tmp_path / "shards").unlabelled()
    with pytest.raises(DataError, match="no such file or folder"):
        read_unlabelled(tmp_path / "none")


def test_lists_that_are_no_lists(tmp_path):
    touch(tmp_path / "a.mp4")
    (tmp_path / "list.txt").write_text("a.mp4 0\na.mp4\n")
    with pytest.raises(DataError, match=r"line 2: expected a path and a class index, got 'a\.mp4'"):
        read_manifest(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("a.mp4 0\na.mp4 1\n")
    with pytest.raises(DataError, match=r"expected unique names, got 'a\.mp4' 2 times"):
        read_manifest(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("b.mp4 0\n")
    with pytest.raises(DataError, match=r"found none: 1 are listed without a file, such as b.mp4"):
        read_manifest(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("a.mp4 400\n")
    with pytest.raises(DataError, match="line 1: expected a class from 0 to 399, got 400"):
        read_manifest(DataSource(path=str(tmp_path / "list.txt"), labels="kinetics400"))


def test_a_folder_per_class(tmp_path):
    touch(tmp_path / "b" / "1.mp4", tmp_path / "a a" / "deep" / "2.webm", tmp_path / "b" / "notes.txt")
    touch(tmp_path / ".hidden" / "3.mp4", tmp_path / "b" / "0.avi")
    manifest = read_manifest(tmp_path)
    assert manifest.labels == ("a a", "b")
    assert as_pairs(manifest) == [("a a/deep/2.webm", 0), ("b/0.avi", 1), ("b/1.mp4", 1)]
    (tmp_path / "names.txt").write_text("b\na a\nc\n")
    manifest = read_manifest(DataSource(path=str(tmp_path), labels=str(tmp_path / "names.txt")))
    assert manifest.labels == ("b", "a a", "c")
    assert [label for _, label in as_pairs(manifest)] == [1, 0, 0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found no folder in it"):
        read_manifest(tmp_path / "empty")


def test_a_folder_of_videos_without_classes(tmp_path):
    touch(tmp_path / "2.mp4", tmp_path / "10.webm", tmp_path / "notes.txt", tmp_path / ".hidden" / "3.mp4")
    manifest = read_manifest(tmp_path)
    assert (as_pairs(manifest), manifest.labels, manifest.num_classes) == ([("10.webm", -1), ("2.mp4", -1)], (), 0)
    touch(tmp_path / "walks" / "deep" / "1.mp4")
    assert as_pairs(read_manifest(tmp_path)) == [("walks/deep/1.mp4", 0)]
    at_any_depth = read_manifest(DataSource(path=str(tmp_path), format="unlabelled"))
    assert as_pairs(at_any_depth) == [("10.webm", -1), ("2.mp4", -1), ("walks/deep/1.mp4", -1)]
    assert as_pairs(read_manifest(tmp_path).unlabelled()) == [("walks/deep/1.mp4", -1)]
    assert read_manifest(tmp_path).unlabelled().num_classes == 0


def plant(root: Path, layout: str) -> None:
    """Make files, "a/x.mp4", and links, "a/up -> ..", with targets relative to the link's folder."""
    for line in layout.split(", "):
        name, _, target = line.partition(" -> ")
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if target:
            path.symlink_to(target)
        elif name.endswith("/"):
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(b"x")


@pytest.mark.parametrize(
    ("layout", "expected", "skipped"),
    [
        ("cat/up -> ..", "", "read_already: cat/up"),
        ("cat/self -> ., cat/dogs -> ../dog", "", "read_already: cat/dogs cat/self"),
        ("cat/above -> ../../..", "", "read_already: cat/above"),
        ("cat/deep/a -> ../../cat, dog/deep/b -> ../../cat/deep", "", "read_already: cat/deep/a dog/deep/b"),
        ("../far/f.mp4, ../far/loop -> ../far, fox -> ../far", "fox/f.mp4:2", "read_already: fox/loop"),
        ("../far/home -> ../data, ../far/f.mp4, fox -> ../far", "fox/f.mp4:2", "read_already: fox/home"),
        ("../far/f.mp4, fox -> ../far, gnu -> ../far", "fox/f.mp4:2", "read_already: gnu"),
        ("../far/f.mp4, ../far/in/g.mp4, fox -> ../far, gnu -> ../far/in", "fox/f.mp4:2 gnu/g.mp4:3",
         "read_already: fox/in"),
        ("aaa -> cat", "", "read_already: aaa"),
        ("../far/f.mp4, cat/f.mp4 -> ../../far/f.mp4", "cat/f.mp4:0", ""),
        ("cat/loop.mp4 -> loop.mp4, cat/gone.mp4 -> nowhere.mp4", "", "missing: cat/gone.mp4 cat/loop.mp4"),
        ("cat/._1.mp4, .git/x.mp4, cat/.cache/1.mp4", "", "hidden: .git cat/._1.mp4 cat/.cache"),
        ("__MACOSX/cat/._1.mp4, @eaDir/1.mp4, cat/@eaDir/1.mp4", "", "hidden: @eaDir __MACOSX cat/@eaDir"),
        ("$RECYCLE.BIN/1.mp4, lost+found/1.mp4, System Volume Information/1.mp4, cat/THUMBS.DB", "",
         "hidden: $RECYCLE.BIN|System Volume Information|cat/THUMBS.DB|lost+found"),
        ("cat/a.MTS, cat/b.m2ts, cat/c.ogv, cat/d.gif, cat/e.VOB, cat/f.h264, cat/g.asf, cat/h.rm",
         "cat/a.MTS:0 cat/b.m2ts:0 cat/c.ogv:0 cat/d.gif:0 cat/e.VOB:0 cat/f.h264:0 cat/g.asf:0 cat/h.rm:0", ""),
        ("cat/a.txt, cat/thumb.webp, notes, dog/b.jpg", "", "not_videos: cat/a.txt cat/thumb.webp dog/b.jpg notes"),
        ("stray.mp4", "", "outside_classes: stray.mp4"),
        ("train/1.mp4, bus/1.mp4", "train/1.mp4:3 bus/1.mp4:0", ""),
    ],
)  # fmt: skip
def test_each_real_folder_is_read_once_and_what_is_passed_over_is_named(tmp_path, layout, expected, skipped):
    root = tmp_path / "data"
    plant(root, "cat/1.mp4, dog/1.mp4, " + layout)
    manifest = read_manifest(root)
    shift = "bus" in layout
    pairs = {("cat/1.mp4", int(shift)), ("dog/1.mp4", 1 + shift)}
    assert set(as_pairs(manifest)) == pairs | {
        (pair.split(":")[0], int(pair.split(":")[1])) for pair in expected.split()
    }
    assert len(manifest.videos) == 2 + len(expected.split())
    reason, _, names = skipped.partition(": ")
    names = tuple(names.split("|") if "|" in names else names.split())
    if reason == "missing":
        assert (manifest.missing, dict(manifest.skipped)) == (names, {})
    else:
        assert {key: tuple(value) for key, value in manifest.skipped.items()} == ({reason: names} if reason else {})


def test_what_was_passed_over_and_empty_classes_are_one_line_each(tmp_path):
    plant(tmp_path, "cat/1.mp4, dog/1.mp4, fox/, cat/a.txt, cat/b.txt, dog/c.jpg, cat/.x")
    manifest = read_manifest(tmp_path)
    assert manifest.labels == ("cat", "dog", "fox")
    assert manifest.remarks() == [
        f"{tmp_path}: passed over 3 files that are no videos: .txt (2), .jpg (1); 1 hidden or system entry: cat/.x",
        f"{tmp_path}: 1 of 3 classes have no video: 'fox'",
    ]
    animated = b"RIFF....WEBPVP8X....\x02..."
    (tmp_path / "fox" / "a.webp").write_bytes(animated)
    (tmp_path / "fox" / "b.webp").write_bytes(animated.replace(b"\x02", b"\x10"))
    assert [name for name, label in as_pairs(read_manifest(tmp_path)) if label == 2] == ["fox/a.webp"]
    assert read_manifest(tmp_path).for_classifier().num_classes == 3


@pytest.mark.parametrize(
    ("layout", "splits"),
    [
        ("train/cat/1.mp4, val/cat/1.mp4", {"train": "train", "validation": "val"}),
        ("Training/cat/1.mp4, VALIDATION/cat/1.mp4, annotations/a.json, .cache/x.mp4",
         {"train": "Training", "validation": "VALIDATION"}),
        ("train/cat/1.mp4, valid/cat/1.mp4, test/cat/1.mp4", {"train": "train", "validation": "valid", "test": "test"}),
        ("train/cat/1.mp4, train/dog/1.mp4", {"train": "train"}),
        ("train/1.mp4, test/1.mp4", {"train": "train", "test": "test"}),
        ("train/1.mp4, bus/1.mp4", {}),
        ("train/cat/1.mp4, bus/red/1.mp4", {}),
        ("train/1.mp4", {}),
        ("train.mp4", {}),
        ("train/cat/1.mp4, val/cat/1.mp4, raw/cat/1.mp4", {"train": "train", "validation": "val"}),
        ("train/cat/1.mp4, val/cat/1.mp4, models/demo.gif", {"train": "train", "validation": "val"}),
        ("train/cat/1.mp4, dev/cat/1.mp4", {"train": "train", "validation": "dev"}),
        ("train_256/cat/1.mp4, val_256/cat/1.mp4", {"train": "train_256", "validation": "val_256"}),
        ("train_set/cat/1.mp4, test-set/cat/1.mp4", {"train": "train_set", "test": "test-set"}),
        ("train/1.mp4, test/1.mp4, bus/1.mp4", {}),
    ],
)  # fmt: skip
def test_folders_of_splits_are_no_classes(tmp_path, layout, splits):
    plant(tmp_path, layout)
    assert split_folders(tmp_path) == {split: tmp_path / name for split, name in splits.items()}
    if splits:
        with pytest.raises(DataError, match=r"one for each split; choose one: .*\(train\)"):
            read_manifest(tmp_path)
        assert read_manifest(DataSource(path=str(tmp_path), format="folders")).num_classes >= len(splits)
    else:
        read_manifest(tmp_path)
    assert split_of(str(tmp_path), "train") == str(tmp_path / splits.get("train", ""))
    assert split_of("http://host/{0..1}.tar", "train") == "http://host/{0..1}.tar"


def test_one_split_has_one_folder(tmp_path):
    plant(tmp_path, "train/cat/1.mp4, val/cat/1.mp4, validation/cat/1.mp4")
    with pytest.raises(DataError, match="expected one folder for each split, got val and validation for validation"):
        read_manifest(tmp_path)


def test_a_class_folder_that_is_a_link_is_that_class(tmp_path):
    plant(tmp_path, "ext/zebra/1.mp4, data/ant/1.mp4")
    (tmp_path / "data" / "zebra").symlink_to(tmp_path / "ext" / "zebra")
    (tmp_path / "data" / "ant" / "more").symlink_to(tmp_path / "ext" / "zebra")
    videos = {video.name: video.label for video in read_manifest(tmp_path / "data").videos}
    assert videos == {"ant/1.mp4": 0, "zebra/1.mp4": 1}


def test_a_classifier_needs_two_classes(tmp_path):
    plant(tmp_path, "cat/1.mp4, cat/2.mp4, dog/")
    with pytest.raises(DataError, match=r"videos of two or more classes, got 1 \('cat'\)"):
        read_manifest(tmp_path).for_classifier()
    (tmp_path / "list.txt").write_text("cat/1.mp4 3\ncat/2.mp4 3\n")
    with pytest.raises(DataError, match=r"got 1 \(class 3\)"):
        read_manifest(tmp_path / "list.txt").for_classifier()
    with pytest.raises(DataError, match="2 videos have no class"):
        read_manifest(tmp_path).unlabelled().for_classifier()


@pytest.mark.parametrize(
    ("name", "content", "labels"),
    [
        ("bom.txt", "\ufeffcat\ndog\n", "cat dog"),
        ("end.txt", "cat\ndog\n\n \n\n", "cat dog"),
        ("windows.txt", "cat \r\n dog\r\n", "cat dog"),
        ("mac.txt", "cat\rdog\r", "cat dog"),
        ("one.csv", "cat\ndog\n", "cat dog"),
        ("table.csv", "\ufeffid,name\r\n1,dog\r\n0,cat\r\n", "cat dog"),
        ("table.csv", "cat,0\ndog,1\n", "cat dog"),
        ("list.json", '\ufeff["cat", "dog "]', "cat dog"),
        ("map.json", '{"dog": 1, "cat": "0"}', "cat dog"),
        ("map.json", '{"1": "dog", "0": "cat"}', "cat dog"),
        ("middle.txt", "cat\n\ndog\n", r"line 2: expected a class name, got ''"),
        ("first.txt", "\ncat\n", r"line 1: expected a class name, got ''"),
        ("twice.txt", "cat\ndog\ncat \n", r"line 3: expected unique class names, got 'cat' again \(.*line 1\)"),
        ("tab.txt", "cat\t0\ndog\t1\n", r"line 1: expected a class name, got .*(control|Unicode)"),
        ("empty.txt", "\n\n", "got an empty file"),
        ("gap.json", '{"cat": 0, "dog": 2}', "numbers from 0 to 1, got none for 1"),
        ("ones.json", '{"1": "cat", "2": "dog"}', "got none for 0"),
        ("twice.json", '{"cat": 0, "dog": 0}', "each number once, got 0 for 'cat' and for 'dog'"),
        ("keys.json", '{"cat": 0, "cat": 1}', "duplicate key 'cat'"),
        ("twice.json", '["cat", "cat"]', "entry 1: expected unique class names, got 'cat' again"),
        ("blank.json", '["cat", ""]', "entry 1: expected a class name"),
        ("float.json", '{"cat": 0.0, "dog": true}', "expected a list of names"),
        ("half.json", '["\\udce9"]', "entry 0: expected a class name, got .*(control|Unicode)"),
        ("gap.csv", "id,name\n0,cat\n2,dog\n", "got none for 1"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_files_of_class_names(tmp_path, name, content, labels, encoding):
    # Python's UTF-16 brings its own byte-order mark.
    (tmp_path / name).write_bytes(content.lstrip("\ufeff" if encoding == "utf-16" else "").encode(encoding))
    if labels == "cat dog":
        assert read_labels(tmp_path / name) == ("cat", "dog")
    else:
        with pytest.raises(DataError, match=labels):
            read_labels(tmp_path / name)


def test_what_is_no_file_of_class_names(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"cat\r\ndog\r\ncaf\xe9\r\n")
    with pytest.raises(DataError, match=r"latin.txt, line 3: expected one class name per line in UTF-8.*e9"):
        read_labels(tmp_path / "latin.txt")
    with pytest.raises(DataError, match=r"nofile.txt: expected a file of class names.*got no such file"):
        read_labels("nofile.txt")
    with pytest.raises(DataError, match="did you mean 'kinetics400'"):
        read_labels("kinetics40")
    with pytest.raises(DataError, match="expected one class name per line, got a folder"):
        read_labels(tmp_path)


def test_lists_of_any_system(tmp_path):
    touch(tmp_path / "a.mp4", tmp_path / "b b.mp4")
    for encoding in ("utf-8-sig", "utf-16"):
        for end in ("\n", "\r\n", "\r"):
            (tmp_path / "list.txt").write_bytes(f"a.mp4 0{end}{end}b b.mp4 1{end}".encode(encoding))
            assert as_pairs(read_manifest(tmp_path / "list.txt")) == [("a.mp4", 0), ("b b.mp4", 1)]
    touch(tmp_path / "a_000000_000010.mp4")
    (tmp_path / "k.csv").write_bytes((KINETICS + "archery ,a,0,10,train\n").replace("\n", "\r").encode("utf-8-sig"))
    assert [label for _, label in as_pairs(read_manifest(tmp_path / "k.csv"))] == [5]
    something(tmp_path, [{"id": "1", "template": "up"}], {"up": "0"})
    (tmp_path / "._labels.json").write_bytes(b"\0\5\x16\7")
    (tmp_path / "train.json").write_bytes((tmp_path / "train.json").read_text().encode("utf-8-sig"))
    assert as_pairs(read_manifest(tmp_path / "train.json")) == [("1", 0)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.text(st.sampled_from(' ",\t\n\ra1.é\x85\u2028\ufeff\udce9'), min_size=1, max_size=8), min_size=1)
)
@example(names=["\ufeffa", "a\nb 3", '"', '"a" 1\n"b"', " ", "a,", "a 1", "\udce9"])
def test_lists_come_back_whatever_their_names(tmp_path, names):
    names = [name for name in dict.fromkeys(names) if name not in (".", "..")] or ["a"]
    for name in names:
        (tmp_path / "files" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "files" / name).write_bytes(b"x")
    written = [(name, number - 1) for number, name in enumerate(names)]
    write_list(tmp_path / "list.txt", written)
    assert as_pairs(read_list(tmp_path / "list.txt", tmp_path / "files")) == written


def test_names_that_are_no_utf8(tmp_path):
    odd = os.fsdecode(b"caf\xe9")
    plant(tmp_path, f"data/cat/{odd}.mp4, data/dog/1.mp4")
    assert as_pairs(read_manifest(tmp_path / "data"))[0] == (f"cat/{odd}.mp4", 0)
    (tmp_path / "list.txt").write_bytes(b"cat/caf\xe9.mp4 0\ndog/1.mp4 1\n")
    assert as_pairs(read_list(tmp_path / "list.txt", tmp_path / "data"))[0] == (f"cat/{odd}.mp4", 0)
    (tmp_path / "list.txt").write_bytes(b"dog/1.mp4 1\ncat/th\xe9.mp4 0\n")
    with pytest.raises(DataError, match="line 2: expected a list as text in UTF-8"):
        read_list(tmp_path / "list.txt", tmp_path / "data")
    (shard,) = write_shards(read_manifest(tmp_path / "data"), tmp_path / "shards")
    assert [video.label for video in read_manifest(shard).videos] == [0, 1]
    plant(tmp_path, f"data/{odd}/1.mp4")
    with pytest.raises(DataError, match=r"data/caf.*expected a class name, got .*(control|Unicode)") as error:
        read_manifest(tmp_path / "data")
    assert odd in str(error.value)


def test_json_keeps_names_that_are_no_utf8_and_is_valid(tmp_path):
    content = {"é\udce9": ["\ud800", 1.5]}
    write_json(tmp_path / "x.json", content)
    assert "é" in (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "x.json").read_bytes()) == content


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("data.zip", b"PK\x03\x04....", "got a zip archive; unpack it"),
        ("data", b"PK\x03\x04....", "got a zip archive; unpack it"),
        ("data.tar", b"PK\x03\x04....", "got a zip archive; unpack it"),
        ("data.rar", b"Rar!\x1a\x07\0", "got a rar archive; unpack it"),
        ("data.7z", b"7z\xbc\xaf\x27\x1c", "got a 7z archive"),
        ("data.tgz", b"\x1f\x8b\x08\0", "got a gzip file; unpack it"),
        ("data.parquet", b"PAR1\0\0", "got a Parquet file"),
        ("x.mp4", b"any", "got a video; give the folder that holds it"),
        ("x.bin", b"\0\0\0\x18ftypmp42\0", "got a video; give the folder that holds it"),
        ("x.mkv", b"", "got a video"),
        ("x.png", b"\x89PNG\r\n", "got a picture"),
        ("list.txt", b"", "got an empty file"),
        ("list.txt", b"\n\n", "got an empty file"),
        ("list.txt", b"a\0b", "got a binary file"),
        ("list.csv", b"\xff\xfea", "expected a data set in UTF-16-LE"),
        ("train.json", b"PK\x03\x04", "got a zip archive"),
        ("empty/", None, "found no folder in it"),
        ("one/data.zip", b"PK", r"found no folder in it; passed over 1 file that is no video: \.zip \(1\)"),
        ("frames/cat/v1/0001.jpg", b"x", "as folders of frames, such as cat/v1/0001.jpg, give a list"),
        ("nowhere", None, "got no such file or folder"),
    ],
)
def test_what_is_no_data_set_is_called_what_it_is(tmp_path, name, content, words):
    if content is None:
        if name.endswith("/"):
            (tmp_path / name).mkdir()
    else:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_manifest(tmp_path / name.split("/")[0])


def test_two_files_for_one_video_are_an_error(tmp_path):
    entries = [{"id": "1", "template": "Holding [something]"}]
    path = something(tmp_path, entries)
    touch(tmp_path / "videos" / "1.gif")  # a preview
    assert read_manifest(path).videos[0].source.name == "1.webm"
    touch(tmp_path / "videos" / "more" / "1.mp4")
    with pytest.raises(DataError, match="expected one file for each video"):
        read_manifest(path)


def test_what_is_not_there_or_not_known(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        read_manifest(tmp_path / "nothing.csv")
    with pytest.raises(ConfigError, match="did you mean 'kinetics'"):
        DataSource(path="x", format="kinetic")
    with pytest.raises(ConfigError, match="no field 'pth', did you mean 'path'"):
        DataSource.from_value({"pth": "x"})
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataError, match="expected JSON"):
        read_manifest(tmp_path / "x.json")
    (tmp_path / "x.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="expected a JSON list"):
        read_manifest(tmp_path / "x.json")
    for content in ('{"a": "0", "b": "2"}', '{"a": "x"}', "[1]"):
        (tmp_path / "labels.json").write_text(content)
        with pytest.raises(DataError, match="expected a list of names"):
            read_labels(tmp_path / "labels.json")


@pytest.fixture
def classes(tmp_path) -> Path:
    for number in range(5):
        write_video(tmp_path / "data" / ("even" if number % 2 == 0 else "odd one") / f"{number} x.mp4", 40 * number)
    return tmp_path / "data"


def test_a_full_disk_is_no_unreadable_video(tmp_path, classes, monkeypatch):
    def full(*_given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("tarfile.TarFile.addfile", full)
    with pytest.raises(StorageError, match=r"shard-000000\.tar: could not be written: the disk is full; make room"):
        write_shards(read_manifest(classes), tmp_path / "shards")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_shards_hold_the_same_videos_byte_by_byte(tmp_path, classes):
    plain = read_manifest(classes)
    done = []
    shards = write_shards(plain, tmp_path / "shards", shard_bytes=1, report=done.append)
    assert done == [1, 2, 3, 4, 5]
    assert [shard.name for shard in shards] == [f"shard-{n:06d}.tar" for n in range(5)]
    packed = read_manifest(tmp_path / "shards")
    assert packed.labels == plain.labels == ("even", "odd one")
    assert [video.label for video in packed.videos] == [video.label for video in plain.videos]
    for ours, theirs in zip(packed.videos, plain.videos, strict=True):
        assert isinstance(ours.source, FilePart)
        assert ours.source.read() == theirs.source.read_bytes()
        frames, others = (list(read_frames(video.source)) for video in (ours, theirs))
        assert len(frames) == len(others) == 4
        assert all(np.array_equal(a.image, b.image) for a, b in zip(frames, others, strict=True))
    again = write_shards(packed, tmp_path / "again")
    assert len(again) == 1
    assert [video.source.read() for video in read_manifest(tmp_path / "again").videos] == [
        video.source.read_bytes() for video in plain.videos
    ]
    with pytest.raises(DataError, match="a new or empty folder"):
        write_shards(plain, tmp_path / "shards")


# webdataset leaves its files open.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_shards_are_what_webdataset_reads_and_writes(tmp_path, classes):
    webdataset = pytest.importorskip("webdataset")
    plain = read_manifest(classes)
    (shard,) = write_shards(plain, tmp_path / "shards")
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert [int(sample["cls"]) for sample in samples] == [video.label for video in plain.videos]
    assert [sample["mp4"] for sample in samples] == [video.source.read_bytes() for video in plain.videos]
    with webdataset.TarWriter(str(tmp_path / "theirs.tar")) as writer:
        for number, video in enumerate(plain.videos):
            writer.write({"__key__": f"some/{number:03d}", "mp4": video.source.read_bytes(), "cls": video.label})
    theirs = read_manifest(tmp_path / "theirs.tar")
    assert as_pairs(theirs) == [(f"some/{n:03d}", video.label) for n, video in enumerate(plain.videos)]
    assert theirs.videos[3].source.read() == plain.videos[3].source.read_bytes()


def test_shards_by_number_and_by_address(tmp_path, classes, monkeypatch):
    monkeypatch.setenv("TRECVIT_CACHE", str(tmp_path / "cache"))
    write_shards(read_manifest(classes), tmp_path / "shards", shard_bytes=1)
    pattern = str(tmp_path / "shards" / "shard-{000001..000003}.tar")
    assert [path.name for path in shard_paths(pattern)] == [f"shard-{n:06d}.tar" for n in (1, 2, 3)]
    assert len(read_manifest(pattern).videos) == 3
    with pytest.raises(DataError, match=r"shard-000005.tar: expected a shard"):
        shard_paths(pattern.replace("000003", "000005"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "shards")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/shard-{{000000..000004}}.tar"
    fetched = read_manifest(address)
    server.shutdown()
    server.server_close()
    assert [video.label for video in fetched.videos] == [0, 0, 0, 1, 1]
    assert len(read_manifest(address).videos) == 5  # from the cache: the server is gone


def test_tars_that_are_none(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"nothing at all")
    with pytest.raises(DataError, match="expected a tar of videos"):
        read_manifest(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        member = tarfile.TarInfo("1.cls")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(DataError, match="expected a tar of videos"):
        read_manifest(tmp_path / "b.tar")


def test_the_label_map_has_a_hash_of_its_own(classes, tmp_path):
    (tmp_path / "names.txt").write_text("odd one\neven\n")
    swapped = read_manifest(DataSource(path=str(classes), labels=str(tmp_path / "names.txt")))
    assert len(label_hash(swapped.labels)) == 16
    assert label_hash(swapped.labels) != label_hash(read_manifest(classes).labels)


def test_the_digest_is_of_what_the_data_are_and_not_of_where_they_lie(tmp_path):
    for root in ("one", "two/moved"):
        touch(tmp_path / root / "a" / "1.mp4", tmp_path / root / "b" / os.fsdecode(b"caf\xe9\n.mp4"))
        absolute = "".join(f"{tmp_path / root / name}.mp4 0\n" for name in ("a/1", "b/2"))
        (tmp_path / f"{Path(root).name}.txt").write_text(absolute)
        touch(tmp_path / root / "b" / "2.mp4")
    digest = read_manifest(tmp_path / "one").digest()
    assert (len(digest), digest) == (64, read_manifest(tmp_path / "two" / "moved").digest())
    lists = [read_manifest(tmp_path / name).digest() for name in ("one.txt", "moved.txt")]
    assert lists[0] == lists[1] != digest
    others = {digest}
    (tmp_path / "one" / "a" / "1.mp4").write_bytes(b"longer")
    others.add(read_manifest(tmp_path / "one").digest())
    (tmp_path / "one" / "a").rename(tmp_path / "one" / "c")
    others.add(read_manifest(tmp_path / "one").digest())
    others.add(read_manifest(tmp_path / "one").unlabelled().digest())
    assert len(others) == 4


def write_tar(path: Path, *members: tuple[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


SAMPLES = (("0.mp4", b"zero"), ("0.cls", b"1"), ("1.mp4", b"one"), ("1.cls", b"0"))


@pytest.mark.parametrize(
    ("members", "expected", "skipped"),
    [
        (
            [("._0.mp4", b"x"), ("._0.cls", b"\0\5"), ("__MACOSX/0.mp4", b"x"), ("PaxHeaders.7/0.mp4", b"x")],
            "",
            "hidden",
        ),
        ([("./2.mp4", b"two"), ("./2.cls", b"3")], "2:3", ""),
        ([("train/2.mp4", b"two"), ("train/2.cls", b"3")], "train/2:3", ""),
        ([("a.g01.mp4", b"x"), ("a.g01.cls", b"4"), ("a.g02.mp4", b"y"), ("a.g02.cls", b"5")], "a.g01:4 a.g02:5", ""),
        ([("a.left.mp4", b"x"), ("a.right.mp4", b"y"), ("a.cls", b"4")], "a.left:4 a.right:4", ""),
        ([("a.rgb.mp4", b"x"), ("a.cls", b"4")], "a:4", ""),
        ([("0.json", b"{}"), ("README", b"x")], "", "not_videos"),
        ([("2.webp", b"RIFF....WEBPVP8 ....")], "", "not_videos"),
    ],
)
def test_members_that_are_no_samples_are_passed_over(tmp_path, members, expected, skipped):
    write_tar(tmp_path / "x.tar", *SAMPLES, *members)
    manifest = read_manifest(tmp_path / "x.tar")
    pairs = [(pair.split(":")[0], int(pair.split(":")[1])) for pair in expected.split()]
    assert as_pairs(manifest) == [("0", 1), ("1", 0), *pairs]
    assert manifest.videos[1].source.read() == b"one"
    assert {reason: len(names) for reason, names in manifest.skipped.items()} == (
        {skipped: len(members)} if skipped else {}
    )


def test_links_in_tars_have_no_bytes_of_their_own(tmp_path):
    write_tar(tmp_path / "x.tar", *SAMPLES)
    with tarfile.open(tmp_path / "x.tar", "a") as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE)):
            member = tarfile.TarInfo(f"link{number}.mp4")
            member.type, member.linkname = kind, "0.mp4"
            tar.addfile(member)
    manifest = read_manifest(tmp_path / "x.tar")
    assert (len(manifest.videos), dict(manifest.skipped)) == (
        2,
        {"odd_members": ["x.tar:link0.mp4", "x.tar:link1.mp4"]},
    )


def test_stray_tars_in_a_folder_are_passed_over(tmp_path):
    write_tar(tmp_path / "0.tar", *SAMPLES)
    write_tar(tmp_path / "backup.tar", ("cat/7.mp4", b"x"))
    write_tar(tmp_path / "annotations.tar", ("a.json", b"{}"))
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "noise.tar").write_bytes(b"nothing at all")
    (tmp_path / "._0.tar").write_bytes(b"\0\5\x16\7")
    (tmp_path / "more.tar.gz").write_bytes(b"\x1f\x8b")
    manifest = read_manifest(tmp_path)
    assert as_pairs(manifest) == [("0", 1), ("1", 0)]
    assert dict(manifest.skipped) == {
        "hidden": ["._0.tar"],
        "not_videos": ["more.tar.gz"],
        "not_shards": ["annotations.tar", "backup.tar", "empty.tar", "noise.tar"],
    }
    (tmp_path / "0.tar").unlink()
    assert as_pairs(read_manifest(tmp_path)) == [("cat/7", NO_LABEL)]
    plant(tmp_path, "cat/1.mp4, dog/1.mp4")  # now the tars are beside the classes
    assert as_pairs(read_manifest(tmp_path)) == [("cat/1.mp4", 0), ("dog/1.mp4", 1)]
    touch(tmp_path / "only" / "odd.tar")
    with pytest.raises(DataError, match=r"found none; passed over 1 tar that is no shard of the data set: odd\.tar"):
        read_manifest(tmp_path / "only")


@pytest.mark.parametrize(("cut", "whole"), [(1200, 1), (2048, 1), (2148, 1), (3260, 1), (4196, 2), (5120, 2)])
@pytest.mark.parametrize("noise", [b"", b"\1" * 512])
def test_of_a_damaged_tar_the_whole_videos_are_read(tmp_path, cut, whole, noise):
    """Cut in a header, in a content or at the end; or with noise there, which tarfile takes for the end."""
    write_tar(tmp_path / "x.tar", ("0.mp4", b"zero"), ("other", b"x"), ("1.mp4", b"1" * 1500), ("2.txt", b"0"))
    content = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(content[:cut] + noise * 4)
    manifest = read_manifest(tmp_path / "x.tar")
    shown = [video.source.read() for video in manifest.videos]
    # Noise within a video is left to `data check`.
    assert shown[0] == b"zero"
    assert len(shown) == whole + bool(noise and cut == 3260)
    assert manifest.skipped["cut_short"] == ["x.tar"]


def test_shards_that_would_lose_a_video_are_refused(tmp_path, classes):
    video = read_manifest(classes).videos[0].source.read_bytes()
    for names, complaint in (
        (["a.mp4", "a.webm"], "expected one video per key"),
        (["a.mp4", "a.cls"], "as the class index in a.cls"),
    ):
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(video)
                tar.addfile(member, io.BytesIO(video))
        with pytest.raises(DataError, match=complaint):
            read_manifest(tmp_path / "x.tar")


def test_lists_with_names_beside_them_and_files_that_are_no_text(tmp_path):
    touch(tmp_path / "a.mp4")
    (tmp_path / "list.txt").write_text("a.mp4, 1\n")
    (tmp_path / "labels.txt").write_text("zero\none\n")
    manifest = read_manifest(tmp_path / "list.txt")
    assert (as_pairs(manifest), manifest.labels) == ([("a.mp4", 1)], ("zero", "one"))
    (tmp_path / "list.txt").write_bytes(bytes(range(128, 256)))
    with pytest.raises(DataError, match="expected a list as text"):
        read_manifest(tmp_path / "list.txt")
