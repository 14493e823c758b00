"""The command line as people and programs meet it: real processes, their output, their exit codes."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from command_line import trecvit
from test_train import SMALL
from typer.testing import CliRunner
from video_fixtures import MPEGTS, VP9, Sender, make_video

from trecvit import create_model
from trecvit.bench.memory import StreamMemory
from trecvit.cli import app, main, predict
from trecvit.errors import CheckpointError, ConfigError, DataError, Interrupted, StorageError
from trecvit.synthetic.world import LABELS
from trecvit.video.decode import probe, read_frames
from trecvit.video.encode import VideoWriter


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "a video.mp4"
    with VideoWriter(path, 12) as writer:
        for level in range(0, 240, 10):
            writer.write(np.full((70, 90, 3), level, np.uint8))
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A model that costs nothing, with class names in several scripts."""
    model = create_model("tiny", width=32, depth=1, num_heads=2, mlp_width=32, image_size=(32, 32), num_classes=3)
    model.relabel(["naïve [red]", "日本", "plain"])
    return model.save(tmp_path_factory.mktemp("models") / "tiny")


def run_main(monkeypatch, *words: object) -> int | None:
    """`trecvit` in this process: its exit code."""
    monkeypatch.setattr(sys, "argv", ["trecvit", *map(str, words)])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # `main` sets its own
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.slow
def test_help_is_quick_and_names_every_command():
    help_s, bare_s = [], []
    for _ in range(3):  # in turns, so that what else goes on slows both
        begun_s = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "trecvit", "--help"], capture_output=True, text=True)
        help_s.append(time.perf_counter() - begun_s)
        begun_s = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import typer, rich"], check=True)
        bare_s.append(time.perf_counter() - begun_s)
    assert done.returncode == 0
    for command in ("classify", "stream", "demo", "info", "convert", "train", "doctor", "data", "eval", "bench"):
        assert re.search(rf"\b{command}\b", done.stdout), command
    # A machine's speed is its own; what is ours to keep is that help costs little more than its library.
    assert min(help_s) < 4 * min(bare_s) + 0.2


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from typer.testing import CliRunner; from trecvit.cli import app; "
        "CliRunner().invoke(app, ['--help']); print([m for m in ('torch', 'av', 'numpy') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_classify_goes_on_past_bad_files_lists_them_and_fails(video, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    done = trecvit("classify", video, broken, tmp_path / "missing.mp4", video, "--json", "--top", 2)
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(line["source"]).name for line in lines] == ["a video.mp4", "broken.mp4", "missing.mp4", "a video.mp4"]
    assert [("top" in line, "error" in line) for line in lines] == [
        (True, False), (False, True), (False, True), (True, False)]  # fmt: skip
    assert lines[0]["top"] == lines[3]["top"]
    assert {entry["label"] for entry in lines[0]["top"]} <= set(LABELS)
    assert "2 of 4 videos could not be read" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "expected SOURCES without --to and --actors, or --ray MANIFEST"),
        (["a.mp4", "--to", "out"], "expected SOURCES without --to"),
        (["--ray", "videos"], "--ray videos: expected --to FOLDER"),
        (["a.mp4", "--ray", "videos", "--to", "out"], "--ray videos: expected --to FOLDER and no SOURCES"),
        (["--ray", ".", "--to", "out", "--device", "cuda:1"], "--device: expected cpu or cuda with --ray"),
        (["--ray", "none", "--to", "out"], "pip install 'trecvit[ray]'"),
    ],
)
def test_a_corpus_that_cannot_be_classified_is_refused(words, expected, monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "trecvit.runtime.cluster", raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    done = trecvit("classify", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert expected in done.stderr


def test_classify_prints_each_answer_when_it_is_there(video, tiny, tmp_path, monkeypatch, capsys):
    from rich.cells import cell_len

    from trecvit.runtime import predict as runtime

    long = tmp_path / ("a long name " * 12 + ".mp4")
    long.write_bytes(video.read_bytes())
    classify_video, printed = runtime.classify, []

    def classify(*args: object, **kwargs: object) -> object:
        printed.append(capsys.readouterr().out)
        return classify_video(*args, **kwargs)

    monkeypatch.setattr(runtime, "classify", classify)
    assert run_main(monkeypatch, "classify", video, long, video, "--top", 2, "-m", tiny) == 0
    printed.append(capsys.readouterr().out)
    assert printed[0] == ""
    assert [text.count("%") for text in printed[1:]] == [2, 2, 2]
    lines = "".join(printed).splitlines()
    assert len(lines) == 1 + 3 * 2
    assert lines[0].split() == ["video", "class", "probability"]
    assert lines[3].startswith(str(long))  # in a file nothing is folded
    assert len({cell_len(line[: line.index("%")]) for line in lines[1:]}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["classify", "{video}", "{odd}", "-m", "{tiny}"], ["plain", "probability", "#|█"]),
        (["classify", "none\udcff é.mp4", "-m", "{tiny}"], [r"none\\udcff"]),
        (["stream", "{odd}", "-m", "{tiny}"], ['"label": "plain"']),
        (["info", "{tiny}"], ["plain"]),
        (["info", "{tiny}", "--json"], ['"plain"']),
        (["doctor"], ["PyTorch"]),
        (["--help"], ["classify"]),
        (["classify", "--help"], ["--clips"]),
    ],
    ids=["classify", "unreadable", "stream", "info", "info --json", "doctor", "help", "classify --help"],
)
def test_every_encoding_can_be_printed(video, tiny, tmp_path, monkeypatch, encoding, words, texts):
    odd = tmp_path / "odd \udcff …日本.mp4"  # a name that is not UTF-8
    odd.write_bytes(video.read_bytes())
    outputs = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, output in outputs.items():
        monkeypatch.setattr(sys, name, output)
    code = run_main(monkeypatch, *(word.format(video=video, odd=odd, tiny=tiny) for word in words))
    printed = ""
    for output in outputs.values():
        output.flush()
        printed += output.buffer.getvalue().decode(encoding)
    assert code == ("none" in texts[0]), printed
    for text in texts:
        assert re.search(text, printed), printed
    if "--json" in words:
        assert json.loads(printed)["labels"] == ["naïve [red]", "日本", "plain"]


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_outputs_may_be_closed(video, tiny, monkeypatch, capsys, name):
    monkeypatch.setattr(sys, name, None)  # as in a process begun with >&-
    assert run_main(monkeypatch, "classify", video, "none.mp4", "-m", tiny) == 1
    getattr(sys, name).close()
    assert ("none.mp4" in capsys.readouterr().err) == (name == "stdout")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("stream VIDEO --save no/out.mp4", "there is no folder no"),
        ("stream VIDEO --save taken", r"ends in \.mp4 or \.webm or \.mkv"),
        ("stream VIDEO --save folder.mp4", "is a folder"),
        ("stream VIDEO --save /proc/out.mp4", "no file can be written to the folder /proc"),
        ("stream VIDEO --save pipe.mp4", "device or pipe"),
        ("stream VIDEO --save hard.mp4", "would be overwritten"),
        ("stream VIDEO --save soft.mp4", "would be overwritten"),
        ("demo VIDEO --save hard.mp4", "would be overwritten"),
        ("demo --save no/out.mp4", "there is no folder no"),
        ("track VIDEO --tracks no/t.npz", "there is no folder no"),
        ("track VIDEO --tracks no/t.csv", "there is no folder no"),
        ("track VIDEO --tracks t.txt", r"ends in \.npz or \.csv"),
        ("track VIDEO --tracks folder.npz", "is a folder"),
        ("track VIDEO --tracks /proc/t.npz", "no file can be written to the folder /proc"),
        ("track VIDEO --tracks taken/t.npz", "there is no folder taken"),
        ("track VIDEO --save ok.mp4 --tracks no/t.npz", "there is no folder no"),
        ("track points.npy --tracks hard.npz", "would be overwritten"),
        ("track VIDEO -m weights.npz --tracks weights.npz", "would be overwritten"),
        ("track VIDEO --save soft.mp4 --tracks soft.csv", "would be overwritten"),
        ("track VIDEO --save x.mp4 --tracks x.csv", "the same file"),
        ("convert motions no/x.npz", "there is no folder no"),
        ("convert motions taken", "is a file"),
        ("convert motions taken/x", "is a file"),
        ("convert motions /proc/x", "no file can be written to the folder /proc"),
        ("export motions full", "new or empty folder"),
        ("export motions taken", "is a file"),
    ],
)
def test_outputs_are_checked_before_the_work(video, tmp_path, monkeypatch, words, message):
    def worked(*_: object, **__: object) -> None:
        pytest.fail("the work was begun")

    for name in ("load_fast", "load_model"):
        monkeypatch.setattr(predict, name, worked)
    monkeypatch.setattr("trecvit.cli.track.load_fast_tracker", worked)
    monkeypatch.setattr("trecvit.weights.load.load", worked)
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file")
    for folder in ("folder.mp4", "folder.npz", "full/in"):
        Path(folder).mkdir(parents=True)
    os.mkfifo("pipe.mp4")
    Path("here.mp4").write_bytes(video.read_bytes())
    os.link("here.mp4", "hard.mp4")
    os.symlink("here.mp4", "soft.mp4")
    np.save("points.npy", np.zeros((2, 8, 8, 3), np.uint8))
    os.link("points.npy", "hard.npz")
    Path("weights.npz").write_text("weights")
    Path("x.mp4").write_text("a video")
    os.symlink("x.mp4", "x.csv")
    before = sorted(os.listdir())
    done = CliRunner().invoke(app, [word.replace("VIDEO", "here.mp4") for word in words.split()])
    with pytest.raises(ConfigError, match=message):
        raise done.exception
    assert sorted(os.listdir()) == before


@pytest.mark.slow
def test_patterns_that_no_shell_expanded_are_expanded(video, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.mp4", "b.mp4", "[x].mp4"):
        Path(name).write_bytes(video.read_bytes())

    def sources(*words: str) -> list[str]:
        run_main(monkeypatch, "classify", *words, "-m", tiny, "--json")
        return [json.loads(line)["source"] for line in capsys.readouterr().out.splitlines()]

    assert sources("?.mp4") == ["a.mp4", "b.mp4"]
    assert sources("[x].mp4") == ["[x].mp4"]  # an existing file takes precedence over the pattern
    assert sources("~/a.mp4", "~/[b-z].mp4") == [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]
    assert sources("*.webm", "a.mp4") == ["*.webm", "a.mp4"]
    for words, message in (
        (["classify", "*.webm"], "as a pattern it matches none"),
        (["classify", "-"], "standard input"),
        (["stream", "?.mp4"], "expected one video, but 2 files match, a.mp4 first"),
        (["track", "?.mp4", "--live"], "expected one video, but 2 files match, a.mp4 first"),
        (["eval", "world", "--footage", "*.webm"], "as a pattern it matches none"),
    ):
        assert run_main(monkeypatch, *words) == 1
        assert message in capsys.readouterr().err


def test_stream_prints_a_json_line_per_frame_looked_at(video):
    done = trecvit("stream", video, "--stride", 3, "--restart-every", 4)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["frame"] for line in lines] == list(range(0, 24, 3))
    assert [line["frames_seen"] for line in lines] == [1, 2, 3, 4, 1, 2, 3, 4]
    assert lines[4]["time_s"] == pytest.approx(1.0)
    for line in lines:
        probabilities = [entry["probability"] for entry in line["top"]]
        assert probabilities == sorted(probabilities, reverse=True)


@pytest.mark.slow
def test_what_was_exported_streams_as_the_model_does(video, tmp_path, forks):
    model = create_model("tiny", width=32, depth=1, num_heads=2, mlp_width=32, image_size=(32, 32), num_classes=3)
    model.save(tmp_path / "model")
    # Sooner than a compiler, and in processes of their own as in test_fast.py.
    done = forks.trecvit("export", tmp_path / "model", tmp_path / "fast", "--mode", "openvino")
    assert done.returncode == 0, done.stderr
    outputs = [
        run("stream", video, "-m", tmp_path / name) for run, name in ((trecvit, "model"), (forks.trecvit, "fast"))
    ]
    expected, exported = ([json.loads(line) for line in done.stdout.splitlines()] for done in outputs)
    assert [line["top"][0]["label"] for line in exported] == [line["top"][0]["label"] for line in expected]
    for line, reference in zip(exported, expected, strict=True):
        assert line["top"][0]["probability"] == pytest.approx(reference["top"][0]["probability"], abs=1e-4)


@pytest.mark.slow
def test_stream_saves_an_annotated_video(video, tmp_path):
    out = tmp_path / "out.webm"
    done = trecvit("stream", video, "--save", out, "--json")
    assert done.returncode == 0, done.stderr
    assert f"wrote {out}" in done.stderr.replace("\n", "")
    about = probe(out)
    assert about.average_fps == 12
    frames = [frame.image for frame in read_frames(out)]
    assert len(frames) == 24
    # Our frames are of one colour: whatever varies within one was drawn.
    assert float(frames[20].std()) > 5


@pytest.mark.slow
def test_stream_keeps_what_was_readable_of_a_damaged_file(tmp_path):
    path = tmp_path / "cut.webm"
    rng = np.random.default_rng(0)
    with VideoWriter(path, 12) as writer:
        for _ in range(30):
            writer.write(rng.integers(0, 256, (64, 64, 3), np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = trecvit("stream", path, "--save", tmp_path / "out.mp4", "--json", "--stride", 1)
    assert done.returncode == 1
    assert done.stderr.strip().count("\n") <= 1
    assert "cut.webm" in done.stderr
    read = len(done.stdout.splitlines())
    assert 5 < read < 30
    assert sum(1 for _ in read_frames(tmp_path / "out.mp4")) == read


@pytest.mark.parametrize(
    ("sent", "code", "line"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_ctrl_c_and_sigterm_end_any_command_with_one_line_after_its_clean_up(monkeypatch, capsys, sent, code, line):
    cleaned_up = []

    def work() -> None:
        try:
            os.kill(os.getpid(), sent)
            time.sleep(60)
        finally:
            if sent == signal.SIGTERM:
                os.kill(os.getpid(), sent)  # `timeout` sends it twice
            cleaned_up.append(True)

    monkeypatch.setattr("trecvit.runtime.doctor.examine", work)
    monkeypatch.setattr(sys, "argv", ["trecvit", "doctor"])
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(SystemExit) as ended:
        main()
    for number, handler in before.items():
        signal.signal(number, handler)
    assert (ended.value.code, capsys.readouterr().err, cleaned_up) == (code, f"trecvit: {line}\n", [True])


@pytest.mark.slow
@pytest.mark.parametrize("rate", ["-1", "0", "nan", "inf"])
@pytest.mark.parametrize("command", ["finetune", "probe"])
def test_a_learning_rate_is_a_number_above_0(tmp_path, command, rate):
    words = [command, "--data", str(tmp_path), "--to", str(tmp_path / "run"), "--lr", rate]
    done = CliRunner().invoke(app, [*words, *(["--validation", str(tmp_path)] if command == "probe" else [])])
    assert isinstance(done.exception, ConfigError)
    assert str(done.exception).startswith("--lr: expected a number above 0, got ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["data", "render", "TO", "--train", 2],
        ["data", "check", "DATA", "--to", "TO"],
        ["data", "shard", "DATA", "TO"],
        ["eval", "videos", "DATA", "--to", "TO"],
        ["eval", "early", "DATA", "--to", "TO"],
        ["eval", "world", "--save", "TO"],
        ["finetune", "--data", "DATA", "--to", "TO", "--batch-size", 1],
        ["probe", "--data", "DATA", "--validation", "DATA", "--to", "TO"],
        ["train", "RECIPE", "--to", "TO"],
        ["bench", "loader", "RECIPE", "--save", "TO"],
        ["curves", "TO", "--save", "TO"],
    ],
    ids=lambda words: " ".join(words[:2]),
)  # fmt: skip
def test_an_output_that_cannot_be_is_refused_before_the_work(tmp_path, words):
    for number in range(4):
        (tmp_path / "data" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "ab"[number % 2] / f"{number}.mp4").write_bytes(b"not looked at")
    (tmp_path / "file").write_text("")
    (tmp_path / "recipe.yaml").write_text(SMALL)
    names = {"DATA": tmp_path / "data", "TO": tmp_path / "file" / "to", "RECIPE": tmp_path / "recipe.yaml"}
    done = CliRunner().invoke(app, [str(names.get(str(word), word)) for word in words])
    assert isinstance(done.exception, StorageError), done.output
    assert re.search(r"to(\.part)?: could not be written: a part of the path is a file", str(done.exception))


@pytest.mark.slow
def test_a_users_error_is_one_line_and_exit_code_1(tmp_path, monkeypatch, capsys):
    def run(*words: object) -> tuple[int | None, str]:
        """In this process: what `trecvit` would end with, and what it prints as errors."""
        return run_main(monkeypatch, *words), capsys.readouterr().err

    for words in (
        ["info", "base_k40"],
        ["classify", "x.mp4", "--model", tmp_path],
        ["train", tmp_path / "none.yaml"],
        ["stream", "nothing.mp4"],
        ["data", "render", tmp_path, "--train", 3],
    ):
        code, line = run(*words)
        assert code == 1, words
        assert line.startswith("trecvit: "), words
        assert line.strip().count("\n") == 0, line
    assert "did you mean 'base_k400'" in run("info", "base_k40")[1]
    assert run("info")[0] == 2
    assert run("stream", "x", "--stride", 0)[0] == 2
    monkeypatch.setattr(sys, "argv", ["trecvit", "--debug", "info", "base_k40"])
    with pytest.raises(CheckpointError):  # which Python prints with its traceback
        main()


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        pytest.param(signal.SIGINT, ["stream"], id="stream", marks=pytest.mark.slow),
        pytest.param(
            signal.SIGTERM, ["track", "-m", "points", "--live", "--grid", 2], id="track", marks=pytest.mark.slow
        ),
    ],
)
def test_a_stopped_recording_is_a_whole_video(tmp_path, sent, words):
    """A process and its signals as in life; tests/test_recording.py has the moments at which a signal can come."""
    with VideoWriter(tmp_path / "long.mp4", 25) as writer:
        for number in range(1000):
            writer.write(np.full((32, 32, 3), number % 250, np.uint8))
    (tmp_path / "out.mp4").write_text("what was there before")
    ours = [signal.SIGINT, signal.SIGTERM]
    process = subprocess.Popen(
        [sys.executable, "-m", "trecvit", *map(str, words), "long.mp4", "--save", "out.mp4"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        preexec_fn=lambda: [signal.signal(number, signal.SIG_DFL) for number in ours],
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(sent)
    process.send_signal(sent)
    _, seen = process.communicate(timeout=60)
    stopped = re.search(r"^wrote out.mp4 \(stopped at frame (\d+)\)$", seen, re.MULTILINE)
    assert stopped, seen
    assert process.returncode == 128 + sent
    assert len(seen.splitlines()) == 2
    assert sum(1 for _ in read_frames(tmp_path / "out.mp4")) == int(stopped[1]) + 1
    assert sorted(os.listdir(tmp_path)) == ["long.mp4", "out.mp4"]
    content = (tmp_path / "out.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["stream", "demo"])
def test_an_interrupt_inside_the_encoder_keeps_the_frames_before(video, tiny, tmp_path, monkeypatch, command):
    picture = VideoWriter._picture

    def interrupted(self: VideoWriter, image: np.ndarray, ticks: int) -> object:
        if self._frames_written == 9:
            raise KeyboardInterrupt
        return picture(self, image, ticks)

    monkeypatch.setattr(VideoWriter, "_picture", interrupted)
    model = ["-m", tiny] if command == "stream" else []
    done = CliRunner().invoke(app, list(map(str, [command, video, *model, "--save", tmp_path / "out.mp4"])))
    assert isinstance(done.exception, Interrupted)
    assert f"wrote {tmp_path / 'out.mp4'} (stopped at frame 8)" in done.stderr
    assert sum(1 for _ in read_frames(tmp_path / "out.mp4")) == 9


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(video, tiny, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "trecvit", "stream", str(video), "-m", str(tiny), "--save", str(tmp_path / "out.mp4")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    words = process.stderr.read().decode()
    process.stderr.close()
    process.wait()
    assert "Traceback" not in words
    assert "Exception ignored" not in words
    assert sum(1 for _ in read_frames(tmp_path / "out.mp4")) > 0  # what was saved until then is kept


@pytest.mark.slow
def test_info_tells_the_facts():
    facts = json.loads(trecvit("info", "motions", "--json").stdout)
    assert facts["labels"] == list(LABELS)
    assert facts["parameters"] > 100_000
    assert "parameters" in trecvit("info", "motions").stdout


def test_convert_there_and_back(tmp_path):
    golden = Path(__file__).parent / "golden" / "small_gap_clips.npz"
    assert trecvit("convert", golden, tmp_path / "folder").returncode == 0
    assert trecvit("convert", tmp_path / "folder", tmp_path / "back.npz").returncode == 0
    before, after = np.load(golden), np.load(tmp_path / "back.npz")
    assert all(np.array_equal(before[name], after[name]) for name in before.files)


@pytest.mark.slow
def test_train_runs_a_recipe(tmp_path):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(SMALL)
    done = trecvit("train", recipe, "optimisation.num_steps=4", "--to", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "step 4/4" in done.stdout
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["optimisation"]["num_steps"] == 4


def test_finetune_takes_training_and_validation_of_a_folder_with_both(tmp_path, monkeypatch):
    for name in ("train/a/1.mp4", "train/b/1.mp4", "train/b/notes.txt", "val/a/2.mp4", "val/b/2.mp4", "one/a/1.mp4"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(b"x")
    (tmp_path / "d" / "one").rename(tmp_path / "one")
    recipes = []
    monkeypatch.setattr("trecvit.cli.train._run_training", lambda recipe, *_: recipes.append(recipe))

    def data_of(*words: object) -> tuple[str, str | None]:
        words = ("finetune", "--to", tmp_path / "run", "--batch-size", 1, *words)
        result = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
        assert result.exit_code == 0
        videos = recipes.pop().task.videos
        return videos.train.path, videos.validation and videos.validation.path

    both = str(tmp_path / "d" / "train"), str(tmp_path / "d" / "val")
    assert data_of("--data", tmp_path / "d") == both
    assert data_of("--data", tmp_path / "d" / "train", "--validation", tmp_path / "d") == both
    assert data_of("--data", tmp_path / "d" / "train") == (both[0], None)
    assert data_of("--data", tmp_path / "d", "--validation", both[0]) == (both[0], both[0])
    with pytest.raises(DataError, match=r"two or more classes, got 1 \('a'\)"):
        data_of("--data", tmp_path / "one")


def test_commands_say_what_they_pass_over(tmp_path):
    for name in ("a/1.mp4", "b/1.mp4", "b/notes.txt", "b/._1.mp4"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(b"x")
    result = CliRunner().invoke(app, ["data", "shard", str(tmp_path / "d"), str(tmp_path / "shards")])
    assert result.exit_code == 0
    assert "passed over 1 file that is no video: .txt (1); 1 hidden or system entry: b/._1.mp4" in result.stderr


@pytest.mark.slow
def test_finetune_teaches_the_bundled_model_new_classes(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(6):
        path = tmp_path / "mine" / ("dark", "light")[number % 2] / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        with VideoWriter(path, 6) as writer:
            for _ in range(8):
                writer.write(rng.integers(0, 60 + 150 * (number % 2), (64, 64, 3), np.uint8))
    words = [
        "finetune",
        "--data",
        tmp_path / "mine",
        "--epochs",
        2,
        "--workers",
        0,
        "--batch-size",
        3,
        "--validation",
        tmp_path / "mine",
    ]
    done = trecvit(*words, "--to", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    report, best, *pictures = done.stdout.splitlines()[-5:]
    top1 = json.loads((tmp_path / "run" / "evaluation" / "result.json").read_text())["top1"]
    assert report == f"top-1 on the validation data: {top1:.1%}"
    assert re.fullmatch(rf"best during training: [\d.]+%, {re.escape(str(tmp_path / 'run' / 'best'))}", best)
    assert pictures == [str(tmp_path / "run" / name) for name in ("curves.png", "evaluation/confusion.png", "model")]
    assert all(Path(path).exists() for path in pictures)
    assert "randomly initialised: head.classifier" in (tmp_path / "run" / "start.txt").read_text()
    assert json.loads((tmp_path / "run" / "evaluation" / "result.json").read_text())["good"] == 6
    assert "chosen by optimisation.bf16=auto" in done.stderr
    again = trecvit(*words, "--to", tmp_path / "run")
    assert (again.returncode, again.stdout.splitlines()) == (0, [report, best, *pictures])
    assert f"already finished (4 steps): {tmp_path / 'run' / 'model'}; give another --to" in again.stderr
    seen = trecvit("classify", tmp_path / "mine" / "dark" / "0.mp4", "--model", tmp_path / "run" / "model", "--json")
    assert {entry["label"] for entry in json.loads(seen.stdout)["top"]} == {"dark", "light"}
    scratch = trecvit(*words, "--to", tmp_path / "scratch", "--scratch")
    assert scratch.returncode == 0, scratch.stderr
    assert (tmp_path / "scratch" / "start.txt").read_text() == "random weights\n"
    drawn = trecvit(
        "curves",
        tmp_path / "run",
        tmp_path / "scratch",
        "--save",
        tmp_path / "both.png",
        "--figures",
        tmp_path / "both.json",
    )
    assert drawn.returncode == 0, drawn.stderr
    figures = json.loads((tmp_path / "both.json").read_text())
    assert set(figures) == {"run", "scratch"}
    assert figures["run"]["top1"] == json.loads((tmp_path / "run" / "evaluation" / "result.json").read_text())["top1"]
    assert figures["run"]["steps"] == 4
    assert (tmp_path / "both.png").stat().st_size > 10_000
    no_run = trecvit("curves", tmp_path)
    assert no_run.returncode == 1
    assert "expected a run folder" in no_run.stderr


@pytest.mark.slow
def test_data_render_writes_the_layout_of_something_something(tmp_path):
    folder = tmp_path / "world"
    done = trecvit("data", "render", folder, "--train", 6, "--validation", 2, "--size", 48, "--frames", 5)
    assert done.returncode == 0, done.stderr
    labels = json.loads((folder / "labels.json").read_text())
    assert labels == {name: str(number) for number, name in enumerate(LABELS)}
    train, validation = (json.loads((folder / f"{split}.json").read_text()) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (6, 2)
    assert not {entry["id"] for entry in train} & {entry["id"] for entry in validation}
    for entry in train + validation:
        assert entry["template"] in labels
        about = probe(folder / "videos" / f"{entry['id']}.webm")
        assert (about.width_px, about.height_px, about.codec) == (48, 48, "vp9")
        assert sum(1 for _ in read_frames(folder / "videos" / f"{entry['id']}.webm")) == 5
    again = trecvit("data", "render", folder)
    assert again.returncode == 1
    assert "empty folder" in again.stderr


@pytest.mark.slow
def test_bench_stream_prints_both_peaks(forks):
    done = forks.trecvit("bench", "stream", "--frames", 60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^ +6 frames +peak memory +[\d.]+ MB", done.stdout, re.MULTILINE)
    assert re.search(r"^ +60 frames", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_eval_world_reports_every_test(video, tmp_path):
    done = trecvit("eval", "world", "--clips", 36, "--footage", video, "--save", tmp_path / "figures.json")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "figures.json").read_text())
    assert [test["num_clips"] for test in report["tests"]] == [36, 36, 36]
    assert len(report["tests"][0]["by_class"]) == 18
    assert len(report["tests"][2]["by_class"]) == 8
    assert "held-out scenes" in done.stdout


@pytest.mark.slow
def test_doctor_finds_nothing_wrong(tmp_path, monkeypatch):
    monkeypatch.setenv("TRECVIT_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    done = trecvit("doctor")
    assert done.returncode == 0, done.stdout
    assert "PyTorch" in done.stdout
    assert "not downloaded" in done.stdout


@pytest.mark.slow
def test_the_demo_writes_a_video(tmp_path, video):
    done = trecvit("demo", video, "--save", tmp_path / "out.mp4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sum(1 for _ in read_frames(tmp_path / "out.mp4")) == 24
    assert re.fullmatch(
        rf"{re.escape(str(video))}: classified \d times, every 8 used frames: .* times\)\n", done.stdout
    )


@pytest.fixture(scope="module")
def something(tmp_path_factory) -> Path:
    """The world as real files, one of them cut short and one deleted."""
    folder = tmp_path_factory.mktemp("data") / "world"
    done = trecvit(
        "data",
        "render",
        folder,
        "--workers",
        1,
        "--train",
        4,
        "--validation",
        18,
        "--size",
        64,
        "--frames",
        8,
        "--fps",
        6,
    )
    assert done.returncode == 0, done.stderr
    cut = folder / "videos" / "9.webm"
    cut.write_bytes(cut.read_bytes()[:200])
    (folder / "videos" / "12.webm").unlink()
    return folder


@pytest.mark.slow
def test_data_check_lists_what_is_wrong_and_what_is_left(something, tmp_path):
    done = trecvit(
        "data", "check", something / "validation.json", "--to", tmp_path / "out", "--min-frames", 4, "--workers", 1
    )
    assert done.returncode == 1
    assert "9: " in done.stderr
    assert re.search(r"missing\s+1\b", done.stdout)
    assert re.search(r"cannot be decoded\s+1\b", done.stdout)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["missing"] == ["12"]
    assert len((tmp_path / "out" / "clean.txt").read_text().splitlines()) == 16


@pytest.mark.slow
def test_data_shard_and_eval_videos_agree_with_the_files(something, tmp_path):
    results = {}
    checked = trecvit("data", "check", something / "validation.json", "--to", tmp_path / "checked", "--workers", 1)
    assert checked.returncode == 1
    clean, labels = tmp_path / "checked" / "clean.txt", something / "labels.json"
    packed = trecvit("data", "shard", clean, tmp_path / "shards", "--labels", labels)
    assert packed.returncode == 0, packed.stderr
    assert "16 videos in 1 shards" in packed.stdout
    for name, data in {"files": something / "validation.json", "shards": tmp_path / "shards"}.items():
        done = trecvit("eval", "videos", data, "--to", tmp_path / name, "--clips", 2, "--crops", 1, "--workers", 0)
        assert done.returncode == (1 if name == "files" else 0), done.stderr
        results[name] = json.loads((tmp_path / name / "result.json").read_text())
    assert results["files"]["failed"][0]["name"] == "9"
    assert results["files"]["protocol"]["missing"] == 1
    for name in ("top1", "top5", "mean_class_accuracy", "calibration_error", "per_class"):
        assert results["files"][name] == results["shards"][name]
    assert results["files"]["protocol"]["label_map_sha256"] == results["shards"]["protocol"]["label_map_sha256"]


@pytest.mark.slow
def test_eval_early_writes_a_result_for_each_readout_and_part(something, tmp_path):
    done = trecvit("eval", "early", something / "validation.json", "--to", tmp_path / "early", "--window", 4)
    assert done.returncode == 1  # the damaged file
    assert "9: " in done.stderr
    assert len(list((tmp_path / "early").glob("*/result.json"))) == 12
    assert "exponential" in done.stdout
    last = json.loads((tmp_path / "early" / "window_1.00" / "result.json").read_text())
    assert (last["protocol"]["readout"], last["protocol"]["window"], last["good"]) == ("window", 4, 16)


@pytest.mark.slow
def test_data_of_other_classes_than_the_models_is_refused(video, tmp_path):
    (tmp_path / "list.txt").write_text(f"{video} 400\n")
    done = trecvit("eval", "videos", tmp_path / "list.txt", "--to", tmp_path / "out")
    assert done.returncode == 1
    assert "expected the model's 18 classes, got 401" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def in_terminal(*words: object, cwd: Path, seconds: float = 60) -> str:
    """What a person would see: the command's own output to a terminal of 100 columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    command = [sys.executable, "-m", "trecvit", *map(str, words)]
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, cwd=cwd) as process:
        os.close(slave)
        seen, until = b"", time.monotonic() + seconds
        with contextlib.suppress(OSError):  # raised when the process has closed the terminal
            while time.monotonic() < until and (some := os.read(master, 65536)):
                seen += some
        os.close(master)
    assert process.returncode == 0, seen.decode()
    return seen.decode()


@pytest.mark.slow
def test_on_a_terminal_the_answers_are_drawn_live(video, tmp_path):
    (tmp_path / "[red]x[").mkdir()
    (tmp_path / "[red]x[" / "red] [bold].mp4").write_bytes(video.read_bytes())
    seen = in_terminal("stream", "[red]x[/red] [bold].mp4", cwd=tmp_path)
    assert "[red]x[/red] [bold].mp4" in seen  # brackets in a name are no markup
    assert re.search(r"frame \d+ of 24 · .* frames/s", seen)
    assert "\x1b[?25l" in seen  # the cursor is hidden while it is drawn
    assert "Traceback" not in seen


@pytest.mark.slow
def test_long_work_shows_a_bar_on_a_terminal(tmp_path):
    seen = in_terminal("data", "render", "world", "--train", 4, "--validation", 2, "--size", 32, cwd=tmp_path)
    assert "clips" in seen
    assert "6/6" in seen


@pytest.mark.slow
def test_the_demo_renders_its_own_video(tmp_path):
    done = trecvit("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scenes = done.stdout.splitlines()
    right = [line for line in scenes if "truth" not in line]
    assert f"{len(right)} of 9 scenes were classified correctly at their last frame" in done.stderr
    assert [line.split(":")[0] for line in scenes] == [f"scene {number}" for number in range(1, 10)]
    assert probe(tmp_path / "demo.mp4").stated_frames > 9 * 8


def test_a_video_is_never_saved_over_itself(video, tmp_path):
    mine = tmp_path / "demo.mp4"
    mine.write_bytes(video.read_bytes())
    done = trecvit("demo", mine, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "would be overwritten; give --save another name" in done.stderr
    assert mine.read_bytes() == video.read_bytes()


@pytest.mark.parametrize("words", [
    ("classify", "VIDEO", "--device", "cuda:7"),
    ("convert", "motions", "taken"),
    ("convert", "motions", "no/x.npz"),
])  # fmt: skip
def test_what_the_system_refuses_is_one_line_too(video, tmp_path, words):
    (tmp_path / "taken").write_text("a file")
    done = trecvit(*(video if word == "VIDEO" else word for word in words), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("trecvit: ")
    assert done.stderr.count("\n") == 1


def test_bench_stream_fails_if_memory_grew(monkeypatch):
    grown = StreamMemory((100, 1000), (10**8, 2 * 10**8), (64, 64), 5.0)
    monkeypatch.setattr("trecvit.bench.memory.stream_memory", lambda *_, **__: grown)
    result = CliRunner().invoke(app, ["bench", "stream"])
    assert result.exit_code == 1
    assert "memory grew by 100,000,000 bytes" in result.output


@pytest.mark.slow
def test_bench_loader_prints_both_speeds(tmp_path):
    trecvit(
        "data",
        "render",
        tmp_path / "world",
        "--train",
        40,
        "--validation",
        0,
        "--size",
        32,
        "--suffix",
        ".mp4",
        "--workers",
        1,
    )
    recipe = Path(__file__).parent.parent / "src" / "trecvit" / "recipes" / "world_files.yaml"
    done = trecvit(
        "bench", "loader", recipe, f"videos.train={tmp_path / 'world' / 'train.json'}", "videos.validation=null",
        "videos.validate_every=0", "optimisation.batch_size=8", "--steps", 2, "--workers", 0, "--workers", 1,
        "--save", tmp_path / "speed.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "decoded and augmented, 1 workers" in done.stdout
    assert set(json.loads((tmp_path / "speed.json").read_text())["made"]) == {"0", "1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [["stream"], ["track", "--model", "points", "--json", "--grid", "1"], ["track", "-m", "points", "--live"]],
)
def test_a_sender_that_takes_one_client_is_enough(tmp_path, command):
    content = make_video(tmp_path / "sent", MPEGTS, num_frames=12).read_bytes()
    with Sender(content) as sender:
        result = CliRunner().invoke(app, [*command, "--reconnect", "0", f"tcp://{sender.address}"])
        assert result.exit_code == 0, result.output
        assert sender.connections == 1
    assert json.loads(result.stdout.splitlines()[0])["frame"] == 0


def test_a_video_that_is_served_once_is_classified(tmp_path):
    content = make_video(tmp_path / "sent", VP9, num_frames=40).read_bytes()
    head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    with Sender(content, head=head) as sender:
        result = CliRunner().invoke(app, ["classify", f"http://{sender.address}/a.webm", "--json"])
        assert sender.connections == 1
    local = CliRunner().invoke(app, ["classify", str(tmp_path / "sent.webm"), "--json"])
    answers = [json.loads(of.stdout) for of in (result, local)]
    assert answers[0]["frames"] == answers[1]["frames"] == 40
    assert answers[0]["top"] == answers[1]["top"]
