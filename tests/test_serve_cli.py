"""`trecvit serve` as a process: its address, its end, and streams that outlive a killed server."""

from __future__ import annotations

import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from command_line import trecvit
from serving import images, server_process

from trecvit.serve.batching import ServedClassifier
from trecvit.serve.client import Client
from trecvit.serve.protocol import Result
from trecvit.weights.load import load


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--host", "0.0.0.0"], "--token-file"),
        (["--token-file", "missing"], "--token-file missing: expected a file"),
        (["-m", "motions", "-m", "./motions"], "different names"),
        (["--allow-origin", "*"], "--allow-origin"),
        (["--actors", "2"], "--actors: expected it with --ray"),
        (["--ray", "--device", "cuda:1"], "--device: expected cpu or cuda with --ray"),
    ],
)
def test_a_server_that_cannot_be_is_refused(words, expected):
    done = trecvit("serve", *words)
    assert done.returncode == 1
    assert expected in done.stderr


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = trecvit("serve", "-m", "motions", "--port", port)
    assert done.returncode == 1
    assert f"--port {port}: expected a free address" in done.stderr


def test_a_missing_package_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("trecvit.serve")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = trecvit("serve")
    assert done.returncode == 1
    assert "pip install 'trecvit[serve]'" in done.stderr


def test_a_missing_ray_is_named(monkeypatch):
    for name in ("trecvit.runtime.cluster", "trecvit.serve.actors"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    done = trecvit("serve", "--ray", "--port", 0)
    assert done.returncode == 1
    assert done.stderr == "trecvit: --ray needs the package 'ray': pip install 'trecvit[ray]'\n"


@pytest.mark.slow
@pytest.mark.timeout(600)  # two starts of a process, on a busy machine
def test_a_killed_server_resumes_and_ctrl_c_ends_it(tmp_path: Path):
    frames = images(40, height=64, width=64)
    served = ServedClassifier("motions", load("motions"))
    state, probs = served.init_state(), []
    with torch.inference_mode():
        for frame in frames:
            results, state = served.step(served.to_clip(frame)[None], state)
            probs.append(results[0])

    def check(result: Result) -> None:
        for item in result.top:
            assert abs(item.probability - probs[result.frame][served.labels.index(item.label)]) < 2e-5

    with server_process("--states", tmp_path) as (url, process):
        client = Client(url, "motions")
        for frame in frames[:25]:
            check(client.step(frame))
            time.sleep(0.06)  # a session with a socket is saved once a second
        process.kill()
        process.wait()
    client.close()
    assert list(tmp_path.glob("*.json"))
    with server_process("--states", tmp_path) as (url, process):
        with Client(url, "motions", resume=client.ready.token) as again:
            assert again.ready.frame is not None
            assert 0 <= again.ready.frame < 25
            assert again.ready.seen == again.ready.frame + 1
            for number in range(again.ready.frame + 1, 40):
                result = again.step(frames[number])
                assert result.after == number - 1
                check(result)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.strip() == "trecvit: interrupted"
    left = {path.name for path in tmp_path.iterdir()}
    assert len(left) == 2, "a record and its state"
    assert not any("part" in name for name in left)
