from __future__ import annotations

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

from trecvit.data.class_names import class_names
from trecvit.data.manifest import NO_LABEL, DataSource, label_hash, read_labels, read_list, read_manifest, shard_paths
from trecvit.data.shards import write_shards
from trecvit.errors import ConfigError, DataError
from trecvit.video.decode import FilePart, read_frames
from trecvit.video.encode import VideoWriter


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
    with pytest.raises(DataError, match="'walking my cat' is none of the 400 classes"):
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
    with pytest.raises(DataError, match="entry 0: 'risin' is none of the 2 classes, did you mean 'rising'"):
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


def test_lists_that_are_no_lists(tmp_path):
    touch(tmp_path / "a.mp4")
    (tmp_path / "list.txt").write_text("a.mp4 0\na.mp4\n")
    with pytest.raises(DataError, match=r"line 2: expected a path and the number of its class, got 'a\.mp4'"):
        read_manifest(tmp_path / "list.txt")
    (tmp_path / "list.txt").write_text("a.mp4 0\na.mp4 1\n")
    with pytest.raises(DataError, match=r"'a\.mp4' is listed 2 times"):
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


def test_two_files_for_one_video_are_an_error(tmp_path):
    entries = [{"id": "1", "template": "Holding [something]"}]
    path = something(tmp_path, entries)
    touch(tmp_path / "videos" / "more" / "1.mp4")
    with pytest.raises(DataError, match="two files for one video"):
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
    with pytest.raises(DataError, match="a new or an empty folder"):
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
    with pytest.raises(DataError, match=r"shard-000005.tar: there is no such shard"):
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


def test_shards_that_would_lose_a_video_are_refused(tmp_path, classes):
    video = read_manifest(classes).videos[0].source.read_bytes()
    for names, complaint in ((["a.mp4", "a.webm"], "a second video of its key"), (["a.g01.mp4"], "dots in its key")):
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
