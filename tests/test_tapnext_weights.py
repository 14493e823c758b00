"""TAPNext's files: both formats, whole or not at all, no code run; its folders; its names in the zoo."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from models import random_video, tiny_model, tiny_tracker
from safetensors.torch import save_file

import trecvit
from trecvit.config import ModelConfig
from trecvit.errors import CheckpointError, ConfigError
from trecvit.model.tapnext import TAPNext, TrackerConfig
from trecvit.model.trecvit import TRecViT, sincos_positions
from trecvit.pretrained import CONFIG_FILE, WEIGHTS_FILE
from trecvit.weights.load import convert, load, load_as
from trecvit.weights.tapnext import read_tapnext
from trecvit.weights.zoo import ZOO

GOLDEN = Path(__file__).parent / "golden"
TORCH_FILE, JAX_FILE = GOLDEN / "tapnext_small.pt", GOLDEN / "tapnext_small_jax.npz"


def state_dict() -> dict[str, torch.Tensor]:
    return dict(torch.load(TORCH_FILE, weights_only=True))


def rewrite_torch(path: Path, change) -> Path:
    tensors = state_dict()
    change(tensors)
    torch.save(tensors, path)
    return path


def rewrite_npz(path: Path, change) -> Path:
    with np.load(JAX_FILE) as file:
        arrays = {name: file[name] for name in file.files}
    change(arrays)
    np.savez(path, **arrays)
    return path


def query_positions() -> torch.Tensor:
    return sincos_positions(256, 256, 48)[None]


def assert_same_weights(got: TAPNext, expected: TAPNext) -> None:
    assert got.config == expected.config
    for name, tensor in expected.state_dict().items():
        assert torch.equal(got.state_dict()[name], tensor), name


# ---- what the files say ----


def test_sizes_are_read_off_the_arrays_and_the_arithmetic_goes_by_the_format():
    blocks = ModelConfig(
        width=48, depth=3, num_heads=3, mlp_width=192, conv_width=4, temporal_mlp=True, min_radius=0.9, patch_size=32,
        image_size=(256, 256), pooling="mean", num_classes=0, gelu="erf",
    )  # fmt: skip
    config, _ = read_tapnext(TORCH_FILE)
    assert config == TrackerConfig(blocks=blocks, norm_eps=1e-5, query_border="zeros")
    config, _ = read_tapnext(JAX_FILE)
    assert config == TrackerConfig(blocks=blocks.replace(gelu="tanh"))
    for path, eps in ((TORCH_FILE, 1e-5), (JAX_FILE, 1e-6)):  # too small a difference for the numbers to show it
        tracker = load(path)
        assert tracker.norm.eps == tracker.visibility.second_norm.eps == eps
        assert tracker.blocks[0].spatial.mlp_norm.eps == 1e-6


def test_both_formats_hold_the_same_weights():
    (_, ours), (_, theirs) = read_tapnext(TORCH_FILE), read_tapnext(JAX_FILE)
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_every_value_is_used_once(tmp_path):
    """Give every value its own number and count them on our side."""
    numbered, start = {}, 0
    for name, tensor in state_dict().items():
        numbered[name] = torch.arange(start, start + tensor.numel(), dtype=torch.float32).view(tensor.shape)
        start += tensor.numel()
    assert start < 2**24, "float32 counts them"
    torch.save(numbered, tmp_path / "numbered.pt")
    _, tensors = read_tapnext(tmp_path / "numbered.pt")
    # What makes up for pixels from -1 to 1 is taken back.
    weight = tensors["tokenizer.embedding.weight"] = tensors["tokenizer.embedding.weight"].double() / 2
    bias = tensors["tokenizer.embedding.bias"].double() + weight.sum(dim=1)
    assert (bias - numbered["lin_proj.bias"]).abs().max() < 1e-6 * weight.sum(dim=1).max()
    tensors["tokenizer.embedding.bias"] = numbered["lin_proj.bias"]
    values = torch.cat([tensor.double().flatten() for tensor in tensors.values()]).sort().values
    assert torch.equal(values, torch.arange(start, dtype=torch.float64))


@pytest.mark.slow
def test_a_training_runs_checkpoint_is_read_past_everything_else(tmp_path):
    tensors = {f"tapnext.{name}": tensor for name, tensor in state_dict().items()}
    tensors["tapnext.query_pos_embed"] = query_positions()
    lightning = {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": tensors,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(7)}}, "param_groups": [{"lr": 1e-3}]}],
        "hyper_parameters": {"lr": 1e-3},
    }
    torch.save(lightning, tmp_path / "run.ckpt")
    assert_same_weights(load(tmp_path / "run.ckpt"), load(TORCH_FILE))
    torch.save({"state_dict": state_dict()}, tmp_path / "nested.pth")
    assert_same_weights(load(tmp_path / "nested.pth"), load(TORCH_FILE))


@pytest.mark.slow
@pytest.mark.parametrize("new_format", [True, False])
def test_torchs_old_format_and_half_precision_are_read_too(tmp_path, new_format):
    half = {name: tensor.bfloat16() for name, tensor in state_dict().items()}
    half["query_pos_embed"] = query_positions().bfloat16()
    torch.save(half, tmp_path / "half.pt", _use_new_zipfile_serialization=new_format)
    got, whole = load(tmp_path / "half.pt"), load(TORCH_FILE)
    assert got.dtype == torch.float32
    for name, tensor in whole.state_dict().items():
        if "embedding" not in name:
            assert torch.equal(got.state_dict()[name], tensor.bfloat16().float()), name


def test_weights_do_not_lie_in_the_file(tmp_path):
    path = rewrite_torch(tmp_path / "model.pt", lambda tensors: None)
    tracker = load(path)
    before = {name: tensor.clone() for name, tensor in tracker.state_dict().items()}
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
    for name, tensor in tracker.state_dict().items():
        assert torch.equal(tensor, before[name])


# ---- whole or not at all ----


def test_what_is_missing_left_over_or_of_another_shape_is_listed_by_name(tmp_path):
    def change(tensors):
        del tensors["encoder_norm.bias"]
        tensors["blocks.1.extra"] = torch.zeros(2, 3)
        tensors["blocks.2.vit_block.mlp.3.weight"] = torch.zeros(48, 191)
        tensors["mask_token"] = torch.zeros(1, 1, 1, 48, dtype=torch.int64)

    with pytest.raises(CheckpointError) as error:
        load(rewrite_torch(tmp_path / "odd.pt", change))
    words = str(error.value)
    assert "odd.pt" in words
    assert "1 missing: encoder_norm.bias (48,)" in words
    assert "1 left over: blocks.1.extra (2, 3)" in words
    assert "blocks.2.vit_block.mlp.3.weight float32 (48, 191) instead of float (48, 192)" in words
    assert "mask_token int64" in words

    def change_arrays(arrays):
        del arrays["backbone/mask_token"]
        arrays["backbone/mask_token"] = np.zeros((1, 1, 1, 47), np.float32)
        del arrays["visible_head/layers_4/scale"]
        arrays["visible_head/layers_7/kernel"] = np.zeros((256, 1), np.float32)

    with pytest.raises(CheckpointError) as error:
        load(rewrite_npz(tmp_path / "odd.npz", change_arrays))
    words = str(error.value)
    assert "1 missing: visible_head/layers_4/scale (256,)" in words
    assert "1 left over: visible_head/layers_7/kernel" in words
    assert "backbone/mask_token float32 (1, 1, 1, 47) instead of float (1, 1, 1, 48)" in words


def test_a_whole_layer_may_not_be_missing(tmp_path):
    def change(tensors):
        for name in [name for name in tensors if name.startswith("blocks.1.")]:
            del tensors[name]

    with pytest.raises(CheckpointError, match=r"missing: blocks\.1\."):
        load(rewrite_torch(tmp_path / "hole.pt", change))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.clear(), "expected an array 'lin_proj.weight' of 4 axes, got none"),
        (lambda t: t.update({"lin_proj.weight": torch.zeros(48, 3)}), r"of 4 axes, got shape \(48, 3\)"),
        (lambda t: t.update(image_pos_emb=torch.zeros(1, 63, 48)), "a square grid of positions, got 63"),
        (
            lambda t: t.update({"coordinate_head.6.weight": torch.zeros(511, 256)}),
            "an even number of coordinate outputs.*511",
        ),
        (lambda t: t.update({"lin_proj.weight": torch.zeros(7, 3, 32, 32)}), "a multiple of width=7, got 48"),
        (lambda t: t.update(query_pos_embed=torch.zeros(1, 100, 48)), r"expected query_pos_embed \(1, 65536, 48\)"),
        (lambda t: t.update(query_pos_embed=query_positions().flip(1)), "sines and cosines in query_pos_embed"),
        (lambda t: t.update(query_pos_embed=query_positions() * torch.nan), "sines and cosines in query_pos_embed"),
        (lambda t: t.update(mask_token="text"), "'mask_token' is no plain tensor"),
        (lambda t: t.update(mask_token=torch.zeros(1, 1, 1, 48).to_sparse()), "'mask_token' is no plain tensor"),
        (lambda t: t.update({"tapnext.mask_token": torch.zeros(1, 1, 1, 48)}), "with or without the prefix 'tapnext.'"),
        (lambda t: t.update(state_dict=[1, 2]), "got a list and no state dict"),
        (lambda t: t.update(mask_token=torch.zeros(1).expand(1, 1, 1, 10**9)), "the tensors are larger than the file"),
    ],
)
def test_other_torch_files_are_refused_with_the_reason(tmp_path, change, words):
    with pytest.raises(CheckpointError, match=f"odd.pt.*{words}"):
        load(rewrite_torch(tmp_path / "odd.pt", change))


def _zip_of_text(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes/a.txt", "hello")


OTHER_MODELS = {
    "a state dict": (
        lambda path: torch.save(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)).state_dict(), path),
        "names such as lin_proj.weight.*got 2 tensors of another model, '0.weight', '0.bias'",
    ),
    "our state dict": (
        lambda path: torch.save(tiny_model().state_dict(), path),
        r"state dict of a model of this package, without its config; write it with model\.save",
    ),
    "our wrapped state dict": (
        lambda path: torch.save(torch.nn.Sequential(tiny_model()).state_dict(), path),
        "state dict of a model of this package",
    ),
    "a training run": (
        lambda path: torch.save({"epoch": 3, "model": {"a": torch.zeros(2)}}, path),
        "got 'epoch', 'model', of which 'epoch' is no plain tensor but a int",
    ),
    "a lightning checkpoint": (
        lambda path: torch.save({"state_dict": {"net.a": torch.zeros(2)}, "epoch": 3}, path),
        "1 tensors of another model, 'net.a'",
    ),
    "a module": (lambda path: torch.save(torch.nn.Linear(2, 3), path), r"holds a torch\.nn\.modules\.linear\.Linear"),
    "a list": (lambda path: torch.save([torch.zeros(2)], path), "got a list and no state dict"),
    "a zip": (_zip_of_text, r"got a zip archive with 'notes/a\.txt'"),
    "text": (lambda path: path.write_text("hello world\n"), "not written by torch.save"),
    "safetensors": (lambda path: save_file({"a": torch.zeros(2)}, path), "not written by torch.save"),
}


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
@pytest.mark.parametrize("kind", OTHER_MODELS)
def test_files_of_other_models_are_called_what_they_are(tmp_path, kind, suffix):
    write, words = OTHER_MODELS[kind]
    write(tmp_path / f"other{suffix}")
    with pytest.raises(CheckpointError, match=f"the only model that is read from a PyTorch file.*{words}") as error:
        load(tmp_path / f"other{suffix}")
    assert len(str(error.value)) < 500
    assert "weights_only=False" not in str(error.value)


def test_weights_of_a_folder_alone_and_folders_of_others_are_named(tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"expected the folder that holds model\.safetensors and config\.json"):
        load(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "vivit"}')
    with pytest.raises(CheckpointError, match="expected the format 'trecvit-1', got None; it is the config of a"):
        load(tmp_path)


@pytest.mark.parametrize("source", [TORCH_FILE, JAX_FILE], ids=["pt", "npz"])
def test_truncated_files_are_refused(tmp_path, source):
    whole = source.read_bytes()
    path = tmp_path / f"cut{source.suffix}"
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut\."):
            load(path)


class _Hostile:
    trap = ""

    def __reduce__(self):
        return (Path.touch, (Path(_Hostile.trap),))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
def test_no_code_of_a_hostile_file_runs(tmp_path, suffix):
    _Hostile.trap = str(tmp_path / "trap")
    path = tmp_path / f"hostile{suffix}"
    for content in (_Hostile(), {"state_dict": state_dict(), "hyper_parameters": _Hostile()}):
        for new_format in (True, False):
            torch.save(content, path, _use_new_zipfile_serialization=new_format)
            with pytest.raises(CheckpointError, match="pickled checkpoints can run code"):
                load(path)
    assert not (tmp_path / "trap").exists()
    pickle.loads(pickle.dumps(_Hostile()))  # the trap works, so the test can fail
    assert (tmp_path / "trap").exists()


# ---- folders ----


@pytest.mark.slow
def test_a_trackers_folder_holds_everything(tmp_path):
    tracker = load(TORCH_FILE, image_size=(64, 96))
    folder = tracker.save(tmp_path / "tracker")
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    assert json.loads((folder / CONFIG_FILE).read_text())["architecture"] == "TAPNext"
    for again in (load(folder), TAPNext.load(folder), TAPNext.from_pretrained(folder), load_as(TAPNext, folder)):
        assert isinstance(again, TAPNext)
        assert_same_weights(again, tracker)
        assert again.preprocessing == tracker.preprocessing
        assert again.preprocessing.image_size == (64, 96)
        assert again.provenance == {"source": "tapnext_small.pt"}
        assert not again.training
    convert(JAX_FILE, tmp_path / "converted")
    assert_same_weights(load(tmp_path / "converted"), load(JAX_FILE))


def test_the_hub_is_told_what_each_model_is_for(tmp_path):
    tiny_tracker().save_pretrained(tmp_path / "tracker")
    tiny_model().save_pretrained(tmp_path / "classifier")
    card = (tmp_path / "tracker" / "README.md").read_text()
    assert "point-tracking" in card
    assert "video-classification" not in card
    card = (tmp_path / "classifier" / "README.md").read_text()
    assert "video-classification" in card
    assert "point-tracking" not in card


def test_a_tracker_and_a_classifier_are_not_taken_for_each_other(tmp_path):
    tiny_tracker().save(tmp_path / "tracker")
    tiny_model().save(tmp_path / "classifier")
    with pytest.raises(CheckpointError, match="expected architecture 'TRecViT', got 'TAPNext'"):
        TRecViT.load(tmp_path / "tracker")
    with pytest.raises(CheckpointError, match="expected architecture 'TAPNext', got 'TRecViT'"):
        TAPNext.load(tmp_path / "classifier")
    with pytest.raises(CheckpointError, match="expected a TRecViT, got a TAPNext"):
        load_as(TRecViT, tmp_path / "tracker")
    with pytest.raises(CheckpointError, match="expected a TAPNext, got a TRecViT"):
        load_as(TAPNext, tmp_path / "classifier")
    with pytest.raises(CheckpointError, match="a TAPNext is written as a folder only"):
        convert(tmp_path / "tracker", tmp_path / "tracker.npz")
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    with pytest.raises(ConfigError, match="expected 0 labels, one per class, got 2"):
        convert(tmp_path / "tracker", tmp_path / "named", labels=tmp_path / "names.txt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(architecture="CoTracker"), "expected architecture 'TRecViT' or .*, got 'CoTracker'"),
        (lambda d: d.update(labels=["a"]), "expected 0 labels, one per class, got 1"),
        (lambda d: d["model"].update(raster_px=0), "raster_px: expected a whole number"),
        (lambda d: d["model"].update(raster_px=32), "of another shape"),
        (lambda d: d["model"].update(rastr=3), "no field 'rastr', did you mean 'raster_px'"),
        (lambda d: d["model"].pop("blocks"), "blocks: expected the fields of a ModelConfig"),
        (lambda d: d["model"]["blocks"].update(depth=10**9), "layers, got"),
        (lambda d: d["model"]["blocks"].update(gelu="relu"), "gelu: expected one of"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(tmp_path, change, words):
    tiny_tracker().save(tmp_path)
    description = json.loads((tmp_path / CONFIG_FILE).read_text())
    change(description)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path)


def test_a_folder_from_before_there_were_trackers_still_loads(tmp_path):
    model = tiny_model()
    model.save(tmp_path)
    description = json.loads((tmp_path / CONFIG_FILE).read_text())
    del description["model"]["gelu"]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(description))
    assert torch.equal(load(tmp_path)(random_video()).logits, model(random_video()).logits)


def test_a_classifiers_exact_gelu_has_no_place_in_the_original_format(tmp_path):
    tiny_model(gelu="erf").save(tmp_path / "model")
    with pytest.raises(CheckpointError, match="does not support gelu='erf'"):
        convert(tmp_path / "model", tmp_path / "model.npz")
    video = random_video()
    assert not torch.equal(tiny_model(gelu="erf")(video).logits, tiny_model()(video).logits)


def test_what_else_a_file_leaves_open_is_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="expected only image_size for a TAPNext file, got also width"):
        load(TORCH_FILE, width=3)
    (tmp_path / "video.mp4").touch()
    with pytest.raises(CheckpointError, match=r"or a TAPNext's \(\.pt, \.pth, \.ckpt\)"):
        load(tmp_path / "video.mp4")


# ---- the zoo ----


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "image_size"), [("bootstapnext", (256, 256)), ("tapnextpp", (256, 256)), ("tapnextpp_512", (512, 512))]
)
def test_a_name_of_the_zoo_loads_with_its_origin_and_its_size(tmp_path, monkeypatch, name, image_size):
    monkeypatch.setenv("TRECVIT_CACHE", str(tmp_path))
    source = JAX_FILE if ZOO[name].filename.endswith(".npz") else TORCH_FILE
    (tmp_path / ZOO[name].filename).write_bytes(source.read_bytes())
    tracker = trecvit.load(name)
    assert_same_weights(tracker, load(source))
    assert tracker.provenance["source"] == ZOO[name].url
    assert tracker.preprocessing.image_size == image_size
    assert trecvit.load(name, image_size=(128, 128)).preprocessing.image_size == (128, 128)
