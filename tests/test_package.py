"""The wheel and the sdist: what is in them, and the README's examples with the wheel installed, not the checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

import trecvit

ROOT = Path(__file__).parent.parent
MAX_WHEEL_BYTES = 40_000_000


def test_the_hub_configuration_of_pytorch_loads_a_model():
    model = torch.hub.load(str(ROOT), "load", "motions", source="local")
    assert len(model.labels) == 18
    assert torch.hub.load(str(ROOT), "create_model", "tiny", source="local", depth=1).config.depth == 1


def test_the_citation_has_the_packages_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert f'version = "{citation["version"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert citation["preferred-citation"]["url"].endswith("2412.14294")


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_workflows_use_scripts_that_exist(path):
    text = path.read_text(encoding="utf-8")
    assert isinstance(yaml.safe_load(text), dict)
    for script in re.findall(r"(?:scripts|\.ci)/\w+", text):
        assert (ROOT / script).exists(), script
    for local in re.findall(r"uses: \./(\S+)", text):
        assert (ROOT / local).exists(), local


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the wheel and the sdist, built without the network."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_the_wheel_holds_what_users_need(built):
    [wheel] = built.glob("*.whl")
    assert wheel.stat().st_size <= MAX_WHEEL_BYTES
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
        [metadata] = [files.read(name).decode() for name in names if name.endswith("METADATA")]
    tops = {name.split("/")[0] for name in names}
    assert tops == {"trecvit", next(name for name in tops if name.endswith(".dist-info"))}
    for needed in (
        "py.typed",
        "recipes/world.yaml",
        "weights/motions/model.safetensors",
        "data/labels/kinetics400.txt",
    ):
        assert f"trecvit/{needed}" in names
    for version in ("3.11", "3.12", "3.13", "3.14"):
        assert f"Classifier: Programming Language :: Python :: {version}" in metadata
    assert "Author: The trecvit authors" in metadata
    assert "Project-URL: Paper" in metadata


@pytest.mark.slow
def test_the_sdist_holds_no_benchmarks(built):
    [sdist] = built.glob("*.tar.gz")
    with tarfile.open(sdist) as files:
        tops = {"/".join(name.split("/")[1:2]) for name in files.getnames()}
    assert not tops & {"benchmarks", ".ci", ".github"}
    assert {"src", "tests", "docs", "README.md", "LICENSE", "pyproject.toml"} <= tops


@pytest.mark.slow
def test_the_readmes_examples_run_with_the_wheel(built, tmp_path):
    """In a new environment: the wheel, and this one's packages, since PyTorch takes minutes to install."""
    venv.create(tmp_path / "env", with_pip=False)
    scripts = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin")
    paths = sysconfig.get_paths("venv", {"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")})
    # A line of a .pth file adds the folder without reading the .pth files in it, so an editable checkout stays out.
    (Path(paths["purelib"]) / "packages.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    [wheel] = built.glob("*.whl")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    install = [sys.executable, "-m", "pip", "--python", str(scripts / "python"), "install", "--no-deps", "--no-index"]
    subprocess.run([*install, "--ignore-installed", str(wheel)], check=True, capture_output=True, env=environment)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 3
    code = "\n".join([*blocks, "print(trecvit.__file__)"])
    command = [str(scripts / "python"), "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[-1]).is_relative_to(tmp_path / "env")
    command = [str(scripts / "trecvit"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stdout) == (0, f"{trecvit.__version__}\n"), done.stderr
