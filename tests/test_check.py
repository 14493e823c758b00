from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import trecvit.data.check as check_module
from trecvit.data.check import check_videos, decode_whole
from trecvit.data.layouts import DataSource, read_manifest
from trecvit.data.shards import write_shards
from trecvit.errors import DataError
from trecvit.video.encode import VideoWriter
from trecvit.video.sources import FilePart


def write_video(path: Path, shade: int, frames: int = 6) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, 12) as writer:
        for _ in range(frames):
            writer.write(np.full((32, 48, 3), shade, np.uint8))


@pytest.fixture
def data(tmp_path) -> Path:
    """Two classes: good videos, a damaged one, an empty one, text, a short one, and two pairs of copies."""
    root = tmp_path / "data"
    for number in range(4):
        write_video(root / "a" / f"{number}.mp4", 10 + 50 * number)
    write_video(root / "b" / "short.mp4", 7, frames=2)
    write_video(root / "b" / "only.mp4", 99)
    (root / "b" / "copy.mp4").write_bytes((root / "b" / "only.mp4").read_bytes())
    (root / "b" / "other.mp4").write_bytes((root / "a" / "3.mp4").read_bytes())
    (root / "b" / "cut.mp4").write_bytes((root / "a" / "0.mp4").read_bytes()[:-300])
    (root / "b" / "empty.mp4").write_bytes(b"")
    (root / "b" / "text.mp4").write_bytes(b"this is no video")
    return root


@pytest.mark.slow
def test_everything_wrong_is_found_and_the_clean_list_is_good(tmp_path, data):
    seen = []
    report = check_videos(read_manifest(data), tmp_path / "out", min_frames=3, report=lambda *now: seen.append(now))
    assert seen[-1] == (11, 3)
    assert (report["listed"], report["found"], report["good"]) == (11, 11, 8)
    assert [entry["name"] for entry in report["failed"]] == ["b/cut.mp4", "b/empty.mp4", "b/text.mp4"]
    assert "got an empty file" in report["failed"][1]["reason"]
    assert report["too_short"] == [{"name": "b/short.mp4", "frames": 2}]
    assert report["duplicates"] == [
        {"names": ["a/3.mp4", "b/other.mp4"], "agree": False},
        {"names": ["b/copy.mp4", "b/only.mp4"], "agree": True},
    ]
    assert report["frames"] == 7 * 6 + 2
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    clean = read_manifest(tmp_path / "out" / "clean.txt")
    assert [(Path(v.name).relative_to(data).as_posix(), v.label) for v in clean.videos] == [
        ("a/0.mp4", 0), ("a/1.mp4", 0), ("a/2.mp4", 0), ("b/copy.mp4", 1),
    ]  # fmt: skip


@pytest.mark.slow
def test_what_was_looked_at_is_not_decoded_again_unless_it_changed(tmp_path, data, monkeypatch):
    manifest = read_manifest(data)
    first = check_videos(manifest, tmp_path / "out")
    decoded = []

    def recorded(videos, num_workers):
        decoded.extend(video.name for video in videos)
        return (decode_whole(video) for video in videos)

    monkeypatch.setattr(check_module, "_decode_all", recorded)
    assert check_videos(manifest, tmp_path / "out") == first
    assert decoded == []
    write_video(data / "b" / "text.mp4", 200)
    again = check_videos(manifest, tmp_path / "out")
    assert decoded == ["b/text.mp4"]
    assert again["good"] == first["good"] + 1


@pytest.mark.slow
def test_a_killed_check_goes_on_where_it_was(tmp_path):
    for number in range(60):
        write_video(tmp_path / "data" / "a" / f"{number:02d}.mp4", number)
    code = (
        "import sys; from trecvit.data.check import check_videos; from trecvit.data.layouts import read_manifest\n"
        "if __name__ == '__main__': check_videos(read_manifest(sys.argv[1]), sys.argv[2], num_workers=1)"
    )
    script = tmp_path / "check.py"
    script.write_text(code)
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "data"), str(out)], start_new_session=True)
    journal = out / "journal.jsonl"
    while not journal.exists() or len(journal.read_text().splitlines()) < 5:
        time.sleep(0.005)
        assert process.poll() is None, "the check ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = len(journal.read_text().splitlines())
    assert 5 <= done < 60
    journal.write_text(journal.read_text() + '{"name": "a/5')  # as if cut off in the middle of a line
    counts = []
    report = check_videos(read_manifest(tmp_path / "data"), out, report=lambda now, _: counts.append(now))
    assert counts[0] >= done - 1
    assert report["good"] == 60


@pytest.mark.slow
def test_a_video_that_kills_its_process_is_named_and_the_others_are_checked(tmp_path, data):
    """A stand-in decoder that dies on one video, in a program of its own because workers are started afresh."""
    script = tmp_path / "die.py"
    script.write_text(
        "import os, sys, json\n"
        "import trecvit.data.check as check\n"
        "from trecvit.data.layouts import read_manifest\n"
        "real = check.decode_whole\n"
        "def dying(video):\n"
        "    if video.name == 'a/1.mp4': os.kill(os.getpid(), 9)\n"
        "    return real(video)\n"
        "check.decode_whole = dying\n"
        "if __name__ == '__main__':\n"
        "    report = check.check_videos(read_manifest(sys.argv[1]), sys.argv[2])\n"
        "    print(json.dumps(report['failed']))\n"
    )
    out = subprocess.run(
        [sys.executable, str(script), str(data), str(tmp_path / "out")], capture_output=True, text=True, check=True
    )
    failed = {entry["name"]: entry["reason"] for entry in json.loads(out.stdout)}
    assert failed["a/1.mp4"] == "the decoder crashed on it"
    assert set(failed) == {"a/1.mp4", "b/cut.mp4", "b/empty.mp4", "b/text.mp4"}


@pytest.fixture
def _in_this_process(monkeypatch) -> None:
    monkeypatch.setattr(check_module, "_decode_all", lambda videos, _: map(decode_whole, videos))


@pytest.mark.usefixtures("_in_this_process")
def test_odd_names_are_reported_and_the_clean_list_is_read_back(tmp_path):
    names = [os.fsdecode(b"caf\xe9.mp4"), "two\nlines 7.mp4", ' "quoted", .mp4', "tab\t1.mp4", "ünïcode.mp4"]
    for number, name in enumerate(names):
        write_video(tmp_path / "x.mp4", 40 * number)  # FFmpeg would not write to such a name
        (tmp_path / "data" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "x.mp4").rename(tmp_path / "data" / "a" / name)
    bad = os.fsdecode(b"b\xe4d.mp4")
    (tmp_path / "data" / "a" / bad).write_bytes(b"no video")
    manifest = read_manifest(tmp_path / "data")
    report = check_videos(manifest, tmp_path / "out")
    assert (report["good"], [entry["name"] for entry in report["failed"]]) == (5, [f"a/{bad}"])
    assert json.loads((tmp_path / "out" / "report.json").read_bytes()) == report
    clean = read_manifest(tmp_path / "out" / "clean.txt")
    assert {Path(video.name).name for video in clean.videos} == set(names)
    assert clean.labels == ("a",)
    assert check_videos(manifest, tmp_path / "out") == report  # from the journal


@pytest.mark.usefixtures("_in_this_process")
def test_what_was_passed_over_is_in_the_report(tmp_path):
    write_video(tmp_path / "data" / "a" / "0.mp4", 9)
    for name in ("._0.mp4", "notes.txt"):
        (tmp_path / "data" / "a" / name).write_bytes(b"x")
    report = check_videos(read_manifest(tmp_path / "data"), tmp_path / "out")
    assert report["passed_over"] == {"hidden": ["a/._0.mp4"], "not_videos": ["a/notes.txt"]}


def test_large_files_are_hashed_in_blocks(tmp_path):
    """Hashes read in blocks equal those of whole files, so that old journals stay valid."""
    content = bytes(range(256)) * 40_000
    path, frames = tmp_path / "x.mp4", tmp_path / "frames"
    path.write_bytes(content)
    frames.mkdir()
    (frames / "0.png").write_bytes(content)
    (frames / ".DS_Store").write_bytes(b"x")
    sources = {
        path: content,
        FilePart(path, 100, 9_000_000, name="part"): content[100:9_000_100],
        frames: b"0.png\0" + content,
    }
    for source, expected in sources.items():
        tracemalloc.start()
        digest = check_module._hash(source)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert digest == hashlib.blake2b(expected, digest_size=16).hexdigest()
        assert peak_bytes < 3_000_000


def test_shards_are_checked_too(tmp_path, data):
    write_shards(read_manifest(data), tmp_path / "shards")
    report = check_videos(read_manifest(tmp_path / "shards"), tmp_path / "out", num_workers=1)
    assert report["good"] == 8
    assert len(report["failed"]) == 3
    assert not (tmp_path / "out" / "clean.txt").exists()


def test_odd_arguments_and_journals(tmp_path, data):
    with pytest.raises(DataError, match="min_frames >= 1"):
        check_videos(read_manifest(data), tmp_path / "out", min_frames=0)
    (tmp_path / "out" / "journal.jsonl").parent.mkdir(exist_ok=True)
    (tmp_path / "out" / "journal.jsonl").write_text("something else\n")
    with pytest.raises(DataError, match="expected the journal of a check"):
        check_videos(read_manifest(data), tmp_path / "out")


@pytest.mark.slow
def test_classes_that_there_are_not_are_reported_and_not_the_end(tmp_path, data):
    names = ["a/0.mp4 0", "a/1.mp4 2", "b/only.mp4 1", "a/2.mp4 -1"]
    (tmp_path / "list.txt").write_text("\n".join(names))
    (tmp_path / "labels.txt").write_text("a\nb\n")
    source = DataSource(path=str(tmp_path / "list.txt"), videos=str(data))
    with pytest.raises(DataError, match="expected a class from 0 to 1, got 2"):
        read_manifest(source)
    unknown: list[tuple[str, str]] = []
    report = check_videos(read_manifest(source, unknown=unknown), tmp_path / "out", unknown=unknown)
    assert report["unknown_class"] == [{"name": "a/1.mp4", "class": "2"}]
    assert (report["found"], report["without_class"]) == (3, 1)
    entries = [{"id": "0", "template": "[Something] a"}, {"id": "only", "template": "[Something] else"}]
    (tmp_path / "train.json").write_text(json.dumps(entries))
    (tmp_path / "labels.json").write_text(json.dumps({"Something a": "0"}))
    unknown.clear()
    manifest = read_manifest(DataSource(path=str(tmp_path / "train.json"), videos=str(data)), unknown=unknown)
    assert ([video.name for video in manifest.videos], unknown) == (["0"], [("only", "Something else")])
    unknown.clear()
    manifest = read_manifest(DataSource(path=str(data), labels=str(one_class(tmp_path))), unknown=unknown)
    assert {label for _, label in unknown} == {"b"}
    assert {video.label for video in manifest.videos} == {0}


def one_class(folder: Path) -> Path:
    (folder / "only_a.txt").write_text("a\n")
    return folder / "only_a.txt"
