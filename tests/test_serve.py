"""A real server on a real port: sessions over sockets, and the HTTP routes."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import tiny_model, tiny_tracker
from serving import MAX_POINTS, assert_class_result, class_probs, images, lone_tracker, small_server
from test_serve_protocol import jpeg
from video_fixtures import VP9, make_video
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from trecvit.runtime.follow import follow_live
from trecvit.runtime.predict import classify
from trecvit.serve.app import create_app
from trecvit.serve.client import Client
from trecvit.serve.guard import Access
from trecvit.serve.openapi import description
from trecvit.serve.protocol import JPEG, RGB8, Failure, FrameHeader, ProtocolError, Result


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with small_server() as address:
        yield address


def fetch(url: str, *, method: str = "GET", **headers: str) -> tuple[int, Any, Any]:
    """Status, JSON or text, and headers of a request."""
    request = urllib.request.Request(
        url, method=method, headers={name.replace("_", "-"): v for name, v in headers.items()}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, content, got = answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        status, content, got = error.code, error.read(), error.headers
    is_json = got.get("Content-Type", "").startswith("application/json")
    return status, json.loads(content) if is_json else content.decode(), got


def eventually(condition: Any) -> None:
    """Wait for something that another thread does."""
    end_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end_s, "did not happen"
        time.sleep(0.01)


# ---- sessions ------------------------------------------------------------------------------------------------------


def test_a_session_classifies_as_a_lone_run(url):
    frames = images(5)
    with Client(url, "classes") as client:
        assert client.ready.image_size == (16, 24)
        assert len(client.ready.labels) == 5
        for number, (frame, probs) in enumerate(zip(frames, class_probs(frames), strict=True)):
            result = client.step(frame)
            assert (result.frame, result.seen, result.dropped) == (number, number + 1, 0)
            assert result.after == (number - 1 if number else None)
            assert result.queue_ms >= 0
            assert result.step_ms > 0
            assert_class_result(result, probs)
        client.reset()
        result = client.step(frames[0])
        assert result.seen == 1
        assert_class_result(result, class_probs(frames[:1])[0])


def test_frames_on_their_way_are_answered_in_order(url):
    frames = images(12)
    results: list[Result] = []
    with Client(url, "classes") as client:
        for frame in frames:
            if client.on_their_way == client.ready.credit:
                results.append(client.receive())
            client.send(frame)
        while client.on_their_way:
            results.append(client.receive())
    assert [result.frame for result in results] == list(range(12))
    for result, probs in zip(results, class_probs(frames), strict=True):
        assert_class_result(result, probs)


def test_a_jpeg_is_a_frame(url):
    with Client(url, "classes") as client:
        client.send_encoded(jpeg(30, 20), JPEG, width=30, height=20)
        assert client.receive().seen == 1


def test_points_are_tracked_as_by_a_live_tracker(url):
    alone = lone_tracker()
    frames = images(8)
    with Client(url, "points") as client:
        assert client.ready.max_points == MAX_POINTS
        for number, frame in enumerate(frames):
            if number in (0, 2, 5):
                client.add(f"point {number}", 3.5 * number, 2)
                alone.add(3.5 * number, 2)
            if number == 4:
                client.remove(0)
                alone.remove(0)
            result = client.step(frame)
            points_xy, visible, certainty = alone.update(frame)
            assert [point.id for point in result.points] == list(alone.ids)
            for point, (x, y), is_visible, certain in zip(result.points, points_xy, visible, certainty, strict=True):
                assert abs(point.x - x) + abs(point.y - y) < 1e-3
                assert point.visible == is_visible
                assert abs(point.certainty - certain) < 1e-4
        assert [point.ref for point in result.points] == ["point 2", "point 5"]
        client.reset()
        assert client.step(frames[0]).points == ()


def test_points_that_cannot_be_tracked_are_refused_and_the_session_goes_on(url):
    with Client(url, "points") as client:
        client.add("outside", 31, 5)
        client.remove(77)
        for number in range(MAX_POINTS + 1):
            client.add(str(number), 5, 5)
        client.send(images(1)[0])
        messages = [client.receive() for _ in range(4)]
        failures = [message for message in messages if isinstance(message, Failure)]
        assert {failure.code for failure in failures} == {"points"}
        assert "'outside'" in failures[0].got
        assert "'3'" in failures[2].got
        result = next(message for message in messages if isinstance(message, Result))
        assert [point.ref for point in result.points] == ["0", "1", "2"]
    with Client(url, "classes") as client:
        client.add("a", 5, 5)
        client.send(images(1)[0])
        assert "classifier" in str([client.receive(), client.receive()])


def test_the_newest_frame_replaces_one_that_waits(url):
    """Without an acknowledgement the server stops after `credit` results; then frames wait, and are replaced."""
    with connect(url.replace("http", "ws") + "v1/stream", subprotocols=["trecvit.v1"]) as socket:
        socket.send('{"type":"hello","model":"classes","policy":"latest"}')
        credit = json.loads(socket.recv())["credit"]
        pixels = images(1)[0].tobytes()

        def send(number: int) -> None:
            socket.send(FrameHeader(RGB8, number, 0, 30, 20).pack() + pixels)

        for number in range(credit):
            send(number)
            assert json.loads(socket.recv(5))["frame"] == number
        for number in range(100, 103):
            send(number)
        with pytest.raises(TimeoutError):
            socket.recv(0.2)
        socket.send(f'{{"type":"ack","frame":{credit - 1}}}')
        result = json.loads(socket.recv(5))
        assert (result["frame"], result["after"], result["dropped"]) == (102, credit - 1, 2)
        assert result["seen"] == credit + 1


# ---- resuming ------------------------------------------------------------------------------------------------------


def test_a_lost_socket_resumes_where_it_was(url):
    frames = images(8)
    probs = class_probs(frames)
    with Client(url, "classes") as client:
        for frame in frames[:5]:
            last = client.step(frame)
        client._socket.socket.close()  # without the closing handshake
    with Client(url, "classes", resume=client.ready.token) as again:
        assert again.ready.session == client.ready.session
        assert (again.ready.frame, again.ready.seen) == (4, 5)
        again.send(frames[4], number=4)  # once more: the client does not know whether it arrived
        assert again.receive() == last
        for number in range(5, 8):
            result = again.step(frames[number])
            assert (result.frame, result.after, result.seen) == (number, number - 1, number + 1)
            assert_class_result(result, probs[number])


def test_the_last_socket_wins(url):
    frames = images(4)
    with Client(url, "points") as first:
        first.add("a", 3, 4)
        first.step(frames[0])
        with Client(url, "points", resume=first.ready.token) as second:
            with pytest.raises(ProtocolError, match="4001"):
                first.receive()
            assert second.step(frames[1]).points[0].ref == "a"
            assert second.step(frames[2]).seen == 3


@pytest.mark.parametrize(
    ("model", "resume", "words"),
    [("classes", "0" * 32, "expired"), ("motions", None, "one of classes, points"), ("points", "own", "classes")],
)
def test_a_session_that_cannot_be_had_is_refused(url, model, resume, words):
    with Client(url, "classes") as other:
        token = other.ready.token if resume == "own" else resume
        with pytest.raises(ProtocolError, match=words):
            Client(url, model, resume=token)


def test_a_session_without_a_socket_expires():
    with small_server(idle_s=2.0) as url:
        with Client(url, "classes") as client:
            client.step(images(1)[0])
        address = f"{url}v1/sessions/{client.ready.session}"
        eventually(lambda: fetch(address, X_Session_Token=client.ready.token)[0] == 404)
        with pytest.raises(ProtocolError, match="expired"):
            Client(url, "classes", resume=client.ready.token)


def test_states_are_evicted_by_bytes_the_oldest_first(url):
    state_bytes = fetch(url + "v1/models")[1]["models"][0]["state_bytes"]
    with small_server(state_bytes=2 * state_bytes) as small:
        clients = []
        for _ in range(3):
            with Client(small, "classes") as client:
                client.step(images(1)[0])
            clients.append(client)
            eventually(lambda client=client: not session_of(small, client)["connected"])
        with pytest.raises(ProtocolError, match="expired"):
            Client(small, "classes", resume=clients[0].ready.token)
        with (
            Client(small, "classes", resume=clients[1].ready.token),
            Client(small, "classes"),
            pytest.raises(ProtocolError, match="bytes"),
        ):
            Client(small, "classes")


def session_of(url: str, client: Client) -> Any:
    return fetch(f"{url}v1/sessions/{client.ready.session}", X_Session_Token=client.ready.token)[1]


def test_no_more_sessions_than_the_limit():
    with small_server(max_sessions=1) as url, Client(url, "classes") as client:
        with pytest.raises(ProtocolError, match="at most 1 sessions"):
            Client(url, "classes")
        client.step(images(1)[0])


def test_sessions_are_resumed_from_a_folder(tmp_path: Path):
    frames = images(6)
    alone = lone_tracker()
    probs = class_probs(frames)
    with small_server(folder=tmp_path) as url, Client(url, "classes") as one, Client(url, "points") as two:
        two.add("a", 3, 4)
        alone.add(3, 4)
        for frame in frames[:3]:
            one.step(frame)
            two.step(frame)
            alone.update(frame)
    assert len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.glob("*.safetensors"))) == 2
    assert not any(one.ready.token in path.read_text() for path in tmp_path.glob("*.json"))
    with (
        small_server(folder=tmp_path) as url,
        Client(url, "classes", resume=one.ready.token) as one,
        Client(url, "points", resume=two.ready.token) as two,
    ):
        assert one.ready.frame == two.ready.frame == 2
        for frame, expected in zip(frames[3:], probs[3:], strict=True):
            assert_class_result(one.step(frame), expected)
            point = two.step(frame).points[0]
            points_xy, _, _ = alone.update(frame)
            assert abs(point.x - points_xy[0, 0]) + abs(point.y - points_xy[0, 1]) < 1e-3
            assert point.ref == "a"


def test_a_damaged_session_is_refused(tmp_path: Path):
    with small_server(folder=tmp_path) as url, Client(url, "classes") as client:
        client.step(images(1)[0])
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-10])
    with small_server(folder=tmp_path) as url, pytest.raises(ProtocolError, match="damaged"):
        Client(url, "classes", resume=client.ready.token)


# ---- HTTP ----------------------------------------------------------------------------------------------------------


def test_the_models_are_listed(url):
    status, content, _ = fetch(url + "v1/models")
    assert status == 200
    assert [(model["name"], model["task"]) for model in content["models"]] == [
        ("classes", "classify"),
        ("points", "track"),
    ]


def test_a_session_is_described_and_deleted_by_its_owner_only(url):
    with Client(url, "classes") as client:
        client.step(images(1)[0])
        address = f"{url}v1/sessions/{client.ready.session}"
        content = session_of(url, client)
        assert (content["frame"], content["seen"], content["connected"]) == (0, 1, True)
        for headers in ({}, {"X_Session_Token": "0" * 32}):
            assert fetch(address, **headers)[0] == 404
            assert fetch(address, method="DELETE", **headers)[0] == 404
        assert fetch(address, method="DELETE", X_Session_Token=client.ready.token)[0] == 204
        with pytest.raises(ProtocolError, match="1001"):
            client.receive()
        assert fetch(address, X_Session_Token=client.ready.token)[0] == 404
    with pytest.raises(ProtocolError, match="expired"):
        Client(url, "classes", resume=client.ready.token)


def test_health_and_metrics(url):
    assert fetch(url + "healthz")[1] == {"status": "ok"}
    assert fetch(url + "readyz")[1] == {"status": "ready"}
    with Client(url, "classes") as client:
        client.step(images(1)[0])
        status, text, headers = fetch(url + "metrics")
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain")
    counters = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(counters['trecvit_frames_total{model="classes"}']) >= 1
    assert float(counters["trecvit_connected_sessions"]) >= 1
    assert float(counters["trecvit_state_bytes"]) > 0
    assert float(counters['trecvit_step_seconds_count{model="classes"}']) >= 1


def test_unknown_paths_and_methods_are_refused_in_json(url):
    for path, method, status in (("v1/nothing", "GET", 404), ("v1/models", "POST", 405), ("v1/stream", "GET", 404)):
        got, content, _ = fetch(url + path, method=method)
        assert got == status
        assert set(content["error"]) == {"code", "expected", "got"}


def test_the_description_is_of_these_routes(url):
    assert fetch(url + "openapi.json")[1] == json.loads(json.dumps(description()))
    app: Any = create_app([], Access("127.0.0.1"))
    routes = {
        (route.path, method.lower())
        for route in app._app.routes
        for method in getattr(route, "methods", None) or ()
        if method != "HEAD"
    }
    described = {
        (path, method)
        for path, operations in description()["paths"].items()
        for method in operations
        if method in ("get", "post", "delete")
    }
    assert described == routes - {("/", "get"), ("/browser/", "get")}


def test_a_socket_without_the_protocol_is_refused(url):
    for subprotocols in (None, ["other"]):
        refused = pytest.raises(InvalidStatus, match="422")
        with refused, connect(url.replace("http", "ws") + "v1/stream", subprotocols=subprotocols):
            pass


def test_the_servers_end_closes_sockets():
    with small_server() as url:
        client = Client(url, "classes")
    with pytest.raises((ProtocolError, ConnectionClosed)):
        client.receive()


# ---- uploads -------------------------------------------------------------------------------------------------------


def post(url: str, body: Any, **headers: str) -> tuple[int, Any]:
    request = urllib.request.Request(url, data=body, method="POST", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            lines = answer.read().decode().splitlines()
            return answer.status, [json.loads(line) for line in lines]
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("videos") / "a", VP9, num_frames=20)


def test_an_upload_is_classified_as_by_the_library(url, video):
    expected = classify(tiny_model(), video, num_clips=2, top_k=3)
    status, [answer] = post(url + "v1/classify?clips=2&top=3", video.read_bytes())
    assert status == 200
    assert (answer["model"], answer["frames"]) == ("classes", 20)
    assert [item["label"] for item in answer["top"]] == list(expected.labels)
    for item, probability in zip(answer["top"], expected.probs, strict=True):
        assert abs(item["probability"] - probability) < 1.1e-5


def test_an_upload_is_tracked_as_by_the_library(url, video):
    queries = np.array([[0, 5, 7.5], [3, 10, 20]], np.float32)
    expected = list(follow_live(tiny_tracker(), video, queries, max_points=MAX_POINTS))
    status, lines = post(url + "v1/track?points=7.5,5;20,10@3", video.read_bytes())
    assert status == 200
    assert lines[-1] == {"done": True, "frames": 20}
    for line, update in zip(lines[:-1], expected, strict=True):
        assert (line["frame"], line["time_s"]) == (update.index, round(update.time_s, 4))
        assert [point["id"] for point in line["points"]] == list(update.ids)
        for point, (x, y) in zip(line["points"], update.points.points_xy, strict=True):
            assert abs(point["x"] - x) + abs(point["y"] - y) < 2e-3
    assert len(post(url + "v1/track?grid=1", video.read_bytes())[1][0]["points"]) == 1


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("classify?clips=0", 422, "1 to 16"),
        ("classify?clips=1e3", 422, "1 to 16"),
        ("classify?model=points", 422, "one of classes"),
        ("classify?model=/etc/passwd", 422, "one of classes"),
        ("track", 422, "points=x,y"),
        ("track?points=1,2&grid=1", 422, "both"),
        ("track?points=1,2;", 422, "points=x,y"),
        ("track?points=-1,2", 422, "points=x,y"),
        ("track?points=1,99999", 422, "x in 0.."),
        ("track?grid=2", 422, "1 to 3 points"),
        ("track?points=1,1;1,1;1,1;1,1", 422, "1 to 3 points"),
    ],
)
def test_impossible_requests_for_an_upload_are_refused(url, video, path, status, words):
    got, error = post(f"{url}v1/{path}", video.read_bytes())
    assert got == status
    assert words in f"{error['expected']} {error['got']}"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no video at all",
        b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/hosts\n",
    ],
    ids=["empty", "text", "playlist", "list of files"],
)
def test_an_upload_that_is_no_video_is_refused_without_a_path(url, body):
    for route in ("classify", "track?grid=1"):
        status, error = post(f"{url}v1/{route}", body)
        assert status == 422
        assert "/" not in error["got"].replace("trecvit-upload", "/")


def test_a_damaged_upload_gives_the_frames_before_the_damage(url, tmp_path):
    whole = make_video(tmp_path / "whole", VP9, num_frames=60).read_bytes()
    status, lines = post(url + "v1/track?grid=1", whole[: len(whole) * 2 // 5])
    assert status == 200
    assert lines[-1]["error"]["code"] == "video"
    assert lines[-1]["frames"] == len(lines) - 1 > 3
    assert str(tmp_path) not in str(lines[-1])
    assert "trecvit-upload" not in str(lines[-1])


def test_uploads_are_limited_in_bytes_pixels_frames_and_number(video, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    size = video.stat().st_size
    with small_server(max_upload_bytes=size - 1) as url:
        assert post(url + "v1/classify", video.read_bytes())[0] == 413
        chunks = iter([video.read_bytes()[:100], video.read_bytes()[100:]])  # without a stated length
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            assert post(url + "v1/classify", chunks)[0] == 413
    with small_server(max_pixels=1000) as url:
        status, error = post(url + "v1/classify", video.read_bytes())
        assert (status, "at most 1000" in error["got"]) == (422, True)
    with small_server(max_upload_frames=5) as url:
        lines = post(url + "v1/track?grid=1", video.read_bytes())[1]
        assert (lines[-1]["error"]["code"], len(lines)) == ("frames", 6)
    with small_server(max_uploads=0) as url:
        assert post(url + "v1/classify", video.read_bytes())[0] == 503
    assert not list(tmp_path.iterdir()), "no upload is left"


def test_a_client_that_leaves_ends_its_upload(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    long = make_video(tmp_path / "long", VP9, num_frames=40).read_bytes()
    (tmp_path / "long.webm").unlink(missing_ok=True)
    for path in tmp_path.iterdir():
        path.unlink()
    with small_server(max_uploads=1) as url:
        host, port = url.removeprefix("http://").rstrip("/").split(":")
        with socket.create_connection((host, int(port))) as client:
            head = f"POST /v1/track?grid=1 HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(long)}\r\n\r\n"
            client.sendall(head.encode() + long)
            assert b"200 OK" in client.recv(1000)
        eventually(lambda: not list(tmp_path.iterdir()))
        with socket.create_connection((host, int(port))) as client:
            client.sendall(head.encode() + long[:100])  # leaves while it sends
        # Until the server has noticed, the one permitted upload is taken.
        eventually(lambda: post(url + "v1/track?grid=1", long)[0] == 200)
        eventually(lambda: not list(tmp_path.iterdir()))


@pytest.mark.slow
def test_the_routes_answer_as_described(url):
    """Generated requests, right and wrong: no server error, and only the answers of the OpenAPI description."""
    pytest.importorskip("schemathesis")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    words = ["--checks", checks, "--max-examples", "12", "--phases", "fuzzing", "--generation-deterministic"]
    command = [sys.executable, "-m", "schemathesis.cli", "run", url + "openapi.json", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
