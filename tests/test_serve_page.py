"""The live page in Chromium, with a file as its camera and a real server."""

from __future__ import annotations

import base64
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import RESULTS, console, wait_for, write_y4m
from serving import small_server

from tools.chromium import chromium
from trecvit.accelerate.optimize import optimize
from trecvit.serve.batching import ServedClassifier, ServedTracker
from trecvit.serve.frames import decode_frame
from trecvit.serve.protocol import parse_frame
from trecvit.weights.load import load

pytestmark = pytest.mark.slow

FPS = 2
CLICK = """
const view = document.getElementById("view"), box = view.getBoundingClientRect();
const shown = Math.min(box.width / view.width, box.height / view.height), scale = shown * view.width / 96;
const left = box.left + (box.width - view.width * shown) / 2;
const top = box.top + (box.height - view.height * shown) / 2;
const place = { clientX: left + arguments[0] * scale, clientY: top + arguments[1] * scale };
view.dispatchEvent(new MouseEvent("click", place));
"""
SENT = """
window.sent = {};
const send = WebSocket.prototype.send;
WebSocket.prototype.send = function (message) {
  if (message instanceof Uint8Array) {
    sent[new DataView(message.buffer).getUint32(8, true)] = btoa(String.fromCharCode(...message));
  }
  return send.call(this, message);
};
"""
LAST = "results[results.length - 1]"


def require_browser() -> None:
    """Skip, with the reason, where Chromium is missing."""
    pytest.importorskip("selenium")
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian: chromium, chromium-driver)")


def moving_picture() -> np.ndarray:
    """A textured square that moves to the right and back over a textured ground, `[T, 96, 96, 3]`."""
    generator = np.random.default_rng(0)
    ground = np.kron(generator.integers(60, 120, (12, 12, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    square = np.kron(generator.integers(0, 256, (6, 6, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    frames = []
    for place in [*range(10, 60), *range(60, 10, -1)]:
        frame = ground.copy()
        frame[36:60, place : place + 24] = square
        frames.append(frame)
    return np.stack(frames)


class Cut:
    """A proxy before a server, whose connections can be cut."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("http://").rstrip("/").split(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self._pairs: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._pairs += [client, server]
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while content := source.recv(65536):
                target.sendall(content)
        except OSError:
            pass
        for end in (source, target):
            end.close()

    def cut(self) -> None:
        """Reset all connections."""
        for end in self._pairs:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def close(self) -> None:
        """Stop."""
        self.cut()
        self._listener.close()


@contextmanager
def page(tmp_path: Path, **options: Any) -> Iterator[tuple[Any, Cut]]:
    """The page with its camera, of a server with the bundled models."""
    require_browser()
    camera = tmp_path / "camera.y4m"
    write_y4m(camera, moving_picture(), FPS)
    models = [
        ServedClassifier("motions", optimize(load("motions"))),
        ServedTracker("points", optimize(load("points")), 8),
    ]
    with small_server(models=models) as url:
        proxy = Cut(url)
        try:
            with chromium(camera=camera, **options) as driver:
                driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": RESULTS + SENT})
                driver.get(proxy.url)
                yield driver, proxy
        finally:
            proxy.close()


def click_on_picture(driver: Any, x: float, y: float) -> None:
    """Click at a place of the canvas' picture."""
    driver.execute_script(CLICK, x, y)


def assert_as_uninterrupted(sent: dict[str, str], results: list[Any]) -> None:
    """Compare all results with a lone run over the frames that the session has processed."""
    served = ServedClassifier("motions", load("motions"))
    expected, state = {}, served.init_state()
    # A frame whose result was lost with a socket is named by the next result.
    processed = sorted({result["frame"] for result in results} | {result["after"] for result in results[1:]})
    with torch.inference_mode():
        for number in processed:
            header, payload = parse_frame(base64.b64decode(sent[str(number)]), max_pixels=10**6)
            clip = served.to_clip(decode_frame(header, payload))
            (expected[number],), state = served.step(clip[None], state)
    for result in results:
        assert result["seen"] == processed.index(result["frame"]) + 1
        for item in result["top"]:
            assert abs(item["probability"] - expected[result["frame"]][served.labels.index(item["label"])]) < 2e-5


def test_a_camera_is_classified_and_a_clicked_point_follows(tmp_path):
    with page(tmp_path) as (driver, proxy):
        assert wait_for(driver, "document.querySelectorAll('#models button').length === 2")
        driver.execute_script("document.getElementById('camera').click()")
        assert wait_for(driver, f"{LAST}?.frame > 5")
        shown = "[...document.querySelectorAll('#bars .name')].map((e) => e.textContent)"
        labels, top = driver.execute_script(f"return [{shown}, {LAST}.top]")  # at once: results go on
        assert labels == [item["label"] for item in top]
        assert "ms" in driver.execute_script("return document.getElementById('latency').textContent")

        # A cut connection comes back, and the state goes on.
        seen = int(driver.execute_script("return document.getElementById('seen').textContent"))
        proxy.cut()
        assert wait_for(driver, "document.getElementById('message').textContent.startsWith('Resumed after frame')")
        assert wait_for(driver, f"Number(document.getElementById('seen').textContent) > {seen + 3}")

        sent, results = driver.execute_script("return [sent, results]")
        assert_as_uninterrupted(sent, results)

        # The other model, by one click; then a click on the square.
        driver.execute_script("document.querySelectorAll('#models button')[1].click()")
        assert wait_for(driver, "!document.getElementById('points').hidden")
        assert wait_for(driver, f"{LAST}.frame > 2 && {LAST}.top.length === 0 && {LAST}.points.length === 0")
        click_on_picture(driver, 48, 48)
        assert wait_for(driver, f"{LAST}.points.length === 1")
        places: list[tuple[int, float, float]] = []
        for _ in range(20):
            last = wait_for(driver, f"{LAST}.frame > {places[-1][0] if places else 0} && {LAST}")
            places.append((last["frame"], last["points"][0]["x"], last["points"][0]["y"]))
        assert [frame for frame, _, _ in places] == sorted({frame for frame, _, _ in places})
        assert max(x for _, x, _ in places) - min(x for _, x, _ in places) > 8, "the square moves"
        assert max(y for _, _, y in places) - min(y for _, _, y in places) < 8, "to its sides only"
        assert driver.execute_script("return document.querySelectorAll('#list li').length") == 1
        click_on_picture(driver, *places[-1][1:])
        assert [entry for entry in console(driver) if "WebSocket" not in entry and "/v1/stream" not in entry] == []
