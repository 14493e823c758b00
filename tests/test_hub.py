"""Model cards and `trecvit push`, against a server that keeps what a client of the Hub sends."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
import yaml
from command_line import trecvit
from models import random_video, tiny_model, tiny_tracker

from trecvit.errors import CheckpointError, ConfigError, DownloadError
from trecvit.hub import prepare, push
from trecvit.model.trecvit import TRecViT
from trecvit.pretrained import CONFIG_FILE, PROCESSOR_FILE, WEIGHTS_FILE


def front_matter(folder):
    _, header, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(header), text


@pytest.fixture
def run(tmp_path):
    """A finished run's folder."""
    model = tiny_model()
    model.relabel(["a", "b", "c", "d", "e"])
    model.provenance = {"licence": "Apache-2.0", "source": "trained for 3 steps"}
    folder = tmp_path / "run"
    model.save(folder / "model")
    (folder / "evaluation").mkdir()
    (folder / "curves.png").write_bytes(b"a picture")
    (folder / "evaluation" / "confusion.png").write_bytes(b"another")
    result = {"top1": 0.625, "top5": 1.0, "mean_class_accuracy": 0.5, "protocol": {"data": "videos/val"}}
    (folder / "evaluation" / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def hub():
    """A Hub at a local address: the repositories and the files of their last commit."""
    kept = SimpleNamespace(repositories={}, tokens=set(), refuses=False, cards=[])

    class Hub(BaseHTTPRequestHandler):
        def do_POST(self):
            body = b"".join(self._chunks())
            kept.tokens.add(self.headers["authorization"])
            if kept.refuses:
                return self._answer(401, {"error": "Invalid username or password."})
            lines = [json.loads(line) for line in body.splitlines()]
            if self.path == "/api/repos/create":
                name = "/".join(filter(None, (lines[0].get("organization"), lines[0]["name"])))
                private = lines[0].get("private", lines[0].get("visibility") == "private")
                kept.repositories[name] = {"private": private}
                return self._answer(200, {"url": f"{kept.address}/{name}"})
            if self.path == "/api/validate-yaml":
                kept.cards.append(lines[0]["content"])
                return self._answer(200, {"errors": [], "warnings": []})
            name = "/".join(self.path.split("/")[3:5])
            if "/preupload/" in self.path:
                files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in lines[0]["files"]]
                return self._answer(200, {"files": files})
            files = [line["value"] for line in lines if line["key"] == "file"]
            kept.repositories[name] |= {file["path"]: base64.b64decode(file["content"]) for file in files}
            return self._answer(200, {"commitUrl": f"{kept.address}/{name}/commit/1", "commitOid": "1" * 40})

        def _chunks(self):
            if self.headers["transfer-encoding"] != "chunked":
                yield self.rfile.read(int(self.headers["content-length"]))
                return
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        def do_GET(self):
            self._answer(404, {"error": "Not here."})

        def _answer(self, code, content):
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    kept.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield kept
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_run_is_published_with_its_figures_and_pictures(run, hub, tmp_path):
    address = push(run, "someone/motions", private=True, token="hf_mine", endpoint=hub.address)
    assert address == f"{hub.address}/someone/motions/commit/1"
    assert hub.tokens == {"Bearer hf_mine"}
    files = dict(hub.repositories["someone/motions"])
    assert files.pop("private") is True
    names = {"README.md", CONFIG_FILE, PROCESSOR_FILE, WEIGHTS_FILE, "curves.png", "confusion.png"}
    assert {name for name in files if name != ".gitattributes"} == names
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    for name, content in files.items():
        (fetched / name).write_bytes(content)
    again = TRecViT.from_pretrained(fetched)
    assert torch.equal(again(random_video()).logits, TRecViT.load(run / "model")(random_video()).logits)
    assert hub.cards == [(fetched / "README.md").read_text(encoding="utf-8")]
    header, text = front_matter(fetched)
    assert header["license"] == "apache-2.0"
    assert header["library_name"] == "trecvit"
    assert header["pipeline_tag"] == "video-classification"
    [entry] = header["model-index"]
    assert entry["name"] == "motions"
    measured = {metric["type"]: metric["value"] for metric in entry["results"][0]["metrics"]}
    assert measured == {"accuracy": 0.625, "top_5_accuracy": 1.0, "balanced_accuracy": 0.5}
    assert entry["results"][0]["dataset"]["name"] == "val"
    assert "| val | top-1 | 62.5% |" in text
    assert 'from_pretrained("someone/motions")' in text
    assert "![curves.png](curves.png)" in text
    assert "a, b, c, d, e." in text


def test_a_hub_that_refuses_is_one_clear_error(run, hub):
    hub.refuses = True
    with pytest.raises(DownloadError, match=r"someone/motions: .*401.*log in with `hf auth login`"):
        push(run, "someone/motions", token="hf_wrong", endpoint=hub.address)
    with pytest.raises(ConfigError, match="expected owner/name, got 'a/b/c'"):
        push(run, "a/b/c", token="hf_mine", endpoint=hub.address)
    with pytest.raises(DownloadError, match="someone/motions"):
        push(run, "someone/motions", token="hf_mine", endpoint="http://127.0.0.1:9")


def test_only_a_models_folder_is_published(run, tmp_path):
    with pytest.raises(CheckpointError, match="expected a model's folder"):
        prepare(tmp_path, "someone/motions", tmp_path / "target")
    prepare(run / "model", "someone/motions", tmp_path / "target")
    header, text = front_matter(tmp_path / "target")
    assert "model-index" not in header
    assert "Measured" not in text


def test_the_files_can_be_looked_at_before(run, tmp_path):
    done = trecvit("push", run, "someone/motions", "--only-write", tmp_path / "card")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'card'}\n")
    assert "model-index" in (tmp_path / "card" / "README.md").read_text()
    again = trecvit("push", run, "someone/motions", "--only-write", tmp_path / "card")
    assert again.returncode == 1
    assert "expected a new or empty folder" in again.stderr


def test_a_card_of_ones_own_is_kept(run, tmp_path):
    (run / "README.md").write_text("mine")
    assert (prepare(run, "someone/motions", tmp_path / "target") / "README.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("", {}),
        ("a data set: CC-BY 4.0, code MIT", {"license": "other", "license_name": "a data set: CC-BY 4.0, code MIT"}),
    ],
)
def test_a_card_states_no_licence_that_the_weights_do_not_have(tmp_path, licence, expected):
    tracker = tiny_tracker()
    tracker.provenance = {"licence": licence} if licence else {}
    tracker.save_pretrained(tmp_path)
    header, text = front_matter(tmp_path)
    assert {key: value for key, value in header.items() if key.startswith("license")} == expected
    assert "pipeline_tag" not in header
    assert {"point-tracking", "trecvit"} <= {*header["tags"]}
    assert "trecvit.TAPNext.from_pretrained" in text
    assert not (tmp_path / PROCESSOR_FILE).exists()
