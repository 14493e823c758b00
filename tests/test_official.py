"""The original authors' files: equal numbers, exact round trips, and nothing taken half."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from models import DEVICE, VARIANTS, random_video, relative_error, tiny_model

from trecvit.config import ModelConfig, model_config
from trecvit.errors import CheckpointError
from trecvit.model.trecvit import TRecViT
from trecvit.weights.load import convert, load
from trecvit.weights.official import from_official, infer_config, official_shapes, read_official, to_official
from trecvit.weights.zoo import ZOO

GOLDEN = Path(__file__).parent / "golden"
FRAMES_PER_CLIP = {"small_tok": None, "small_gap_clips": 6}
PARITY = 1e-5  # float32, relative to the largest value: two libraries add in different orders


@pytest.mark.parametrize("name", FRAMES_PER_CLIP)
def test_every_stored_tensor_equals_the_originals(name):
    model = load(GOLDEN / f"{name}.npz").to(DEVICE)
    stored = np.load(GOLDEN / f"{name}_io.npz")
    clip_length = FRAMES_PER_CLIP[name]
    video = torch.from_numpy(stored["video"]).movedim(-1, 2).to(DEVICE)
    clips = video.unflatten(1, (-1, clip_length or video.shape[1]))

    with torch.no_grad():
        out = model(video, frames_per_clip=clip_length)
        tokens = model.tokenizer(clips.flatten(0, 1).float() / 255)
        features = out.features.reshape(stored["encoded"].shape)
        pooled = features[:, :, 0] if model.config.pooling == "cls" else features.mean(dim=2)
        pre_logits = model.head.evidence(features).mean(dim=1)
    got = {
        "tokens": tokens,
        "encoded": features,
        "head_input": pooled.flatten(0, 1),
        "pre_logits": pre_logits.reshape(stored["pre_logits"].shape),
        "logits": out.logits,
        "probs": out.probs,
    }
    assert set(got) == set(stored.files) - {"video"}
    for key, tensor in got.items():
        assert relative_error(tensor, torch.from_numpy(stored[key])) <= PARITY, key


def test_the_original_is_matched_frame_by_frame_too():
    model = load(GOLDEN / "small_tok.npz").to(DEVICE)
    stored = np.load(GOLDEN / "small_tok_io.npz")
    video = torch.from_numpy(stored["video"]).movedim(-1, 2).to(DEVICE)
    state = model.init_state(video.shape[0])
    with torch.no_grad():
        for frame in range(video.shape[1]):
            out, state = model.step(video[:, frame : frame + 1], state)
            encoded = torch.from_numpy(stored["encoded"][:, frame : frame + 1])
            assert relative_error(out.features, encoded) <= PARITY
    assert relative_error(out.logits, torch.from_numpy(stored["logits"])) <= PARITY


def test_the_architecture_is_read_off_the_arrays():
    config, _ = read_official(GOLDEN / "small_tok.npz")
    assert config == ModelConfig(
        width=48, depth=3, num_heads=3, mlp_width=192, lru_multiplier=2, min_radius=0.5, image_size=(64, 64),
        head_width=64, num_classes=10,
    )  # fmt: skip
    config, _ = read_official(GOLDEN / "small_gap_clips.npz")
    assert (config.positions, config.pooling, config.conv_width, config.lru_multiplier) == ("sincos2d", "mean", 2, 1)


@pytest.mark.parametrize("name", FRAMES_PER_CLIP)
def test_conversion_there_and_back_keeps_every_bit(tmp_path, name):
    original = GOLDEN / f"{name}.npz"
    convert(original, tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / "back.npz")
    before, after = np.load(original), np.load(tmp_path / "back.npz")
    assert set(before.files) == set(after.files)
    for key in before.files:
        assert before[key].dtype == after[key].dtype
        assert np.array_equal(before[key], after[key]), key


_WITHOUT_A_PLACE = {"no_temporal_part", "lstm", "full_conv", "no_gates", "no_skip"}


@pytest.mark.parametrize("variant", sorted(_WITHOUT_A_PLACE - {"no_temporal_part"}))
def test_what_the_official_format_has_no_place_for_is_refused(tmp_path, variant):
    folder = tiny_model(**VARIANTS[variant]).save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"the official format does not support (temporal_|lru_)"):
        convert(folder, tmp_path / "weights.npz")
    assert not (tmp_path / "weights.npz").exists()


@pytest.mark.slow
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name not in _WITHOUT_A_PLACE])
def test_every_architecture_survives_the_official_format(tmp_path, variant):
    model = tiny_model(**VARIANTS[variant])
    folder = model.save(tmp_path / "model")
    convert(folder, tmp_path / "weights.npz")
    config, tensors = read_official(tmp_path / "weights.npz", image_size=(16, 24))
    expected = model.config.replace(min_radius=0.5)
    if not model.config.num_classes:
        expected = expected.replace(head_width=ModelConfig().head_width)
    assert config == expected
    again = TRecViT(config)
    again.load_state_dict(tensors)
    assert torch.equal(again(random_video(1, 8)).features, model(random_video(1, 8)).features)


def test_the_table_covers_the_released_model():
    config = model_config("base_k400")
    shapes = official_shapes(config)
    assert infer_config(shapes) == config
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 136_778_128
    assert shapes["encoder/residualblock_11/recurrent_block/rg_lru/a_gate/w"] == (12, 128, 128)
    assert shapes["encoder/encoderblock_0/MultiHeadDotProductAttention_0/query/kernel"] == (768, 12, 64)


def test_every_array_is_used_once():
    """Each official value goes to exactly one place: give every value its own number and count them on our side."""
    config = tiny_model(temporal_mlp=True, lru_multiplier=2).config
    arrays, start = {}, 0
    for name, shape in official_shapes(config).items():
        size = int(np.prod(shape))
        arrays[name] = np.arange(start, start + size, dtype=np.float32).reshape(shape)
        start += size
    ours = torch.cat([tensor.flatten() for tensor in from_official(config, arrays).values()])
    assert torch.equal(ours.sort().values, torch.arange(start, dtype=torch.float32))
    back = to_official(config, from_official(config, arrays))
    assert all(np.array_equal(back[name], arrays[name]) for name in arrays)


def rewrite(path: Path, change) -> Path:
    """A copy of a golden file with its arrays changed."""
    with np.load(GOLDEN / "small_tok.npz") as file:
        arrays = {name: file[name] for name in file.files}
    change(arrays)
    np.savez(path, **arrays)
    return path


def test_what_is_missing_left_over_or_of_another_shape_is_listed_by_name(tmp_path):
    def change(arrays):
        del arrays["encoder/encoder_norm/scale"]
        arrays["decoder/extra/kernel"] = np.zeros((2, 3), np.float32)
        arrays["encoder/residualblock_01/recurrent_block/conv_1d/b"] = np.zeros(5, np.float32)
        arrays["tokenizer/cls"] = np.zeros((1, 1, 48), np.int64)

    with pytest.raises(CheckpointError) as error:
        load(rewrite(tmp_path / "odd.npz", change))
    words = str(error.value)
    assert "odd.npz" in words
    assert "1 missing: encoder/encoder_norm/scale (48,)" in words
    assert "1 left over: decoder/extra/kernel (2, 3)" in words
    assert "conv_1d/b float32 (5,) instead of float (96,)" in words
    assert "tokenizer/cls int64" in words


def test_a_whole_layer_may_not_be_missing(tmp_path):
    def change(arrays):
        for name in [name for name in arrays if "block_01/" in name or "block_1/" in name]:
            del arrays[name]

    with pytest.raises(CheckpointError, match=r"missing: .*residualblock_01"):
        load(rewrite(tmp_path / "hole.npz", change))


def test_other_files_are_refused_with_the_reason(tmp_path):
    with pytest.raises(CheckpointError, match="not a TRecViT: expected an array 'tokenizer/embedding/kernel'"):
        load(rewrite(tmp_path / "else.npz", lambda arrays: [arrays.pop(key) for key in list(arrays)[:-1]]))

    def flatten_grid(arrays):
        arrays["tokenizer/pos_embedding"] = np.zeros((1, 15, 48), np.float32)

    with pytest.raises(CheckpointError, match="expected a square grid of positions, got 15; give image_size"):
        load(rewrite(tmp_path / "grid.npz", flatten_grid))
    config, _ = read_official(rewrite(tmp_path / "grid.npz", flatten_grid), image_size=(48, 80))
    assert config.num_patches == 15


def test_truncated_files_are_refused(tmp_path):
    whole = (GOLDEN / "small_gap_clips.npz").read_bytes()
    path = tmp_path / "cut.npz"
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut\.npz"):
            load(path)


@pytest.mark.slow
def test_damaged_files_are_refused_or_read_right(tmp_path):
    """Bytes changed anywhere: an error of ours, or (in an unused byte of the archive) the right weights; no crash."""
    whole = bytearray((GOLDEN / "small_gap_clips.npz").read_bytes())
    _, expected = read_official(GOLDEN / "small_gap_clips.npz")
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.npz"
    refused = 0
    for _ in range(60):
        mutated = bytearray(whole)
        for place in rng.integers(len(whole), size=3):
            mutated[place] = rng.integers(256)
        path.write_bytes(mutated)
        try:
            _, tensors = read_official(path)
        except CheckpointError:
            refused += 1
        else:
            assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert refused > 40


class _Hostile:
    def __reduce__(self):
        return (Path.touch, (Path(_Hostile.trap),))

    trap = ""


def test_no_code_of_a_hostile_file_runs(tmp_path):
    _Hostile.trap = str(tmp_path / "trap")
    pickled = np.empty(1, dtype=object)
    pickled[0] = _Hostile()
    path = tmp_path / "hostile.npz"
    with np.load(GOLDEN / "small_tok.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(path, **{**arrays, "tokenizer/cls": pickled})
    with pytest.raises(CheckpointError, match=r"tokenizer/cls object"):
        load(path)
    for suffix in (".pt", ".ckpt", ".pkl"):
        raw = tmp_path / f"hostile{suffix}"
        raw.write_bytes(pickle.dumps(_Hostile()))
        with pytest.raises(CheckpointError, match="pickled checkpoints can run code"):
            load(raw)
    assert not (tmp_path / "trap").exists()
    pickle.loads(pickle.dumps(_Hostile()))  # the trap works, so the test can fail
    assert (tmp_path / "trap").exists()


def test_a_file_that_promises_too_much_allocates_nothing(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tokenizer/embedding/kernel.npy", bytes(50_000_000))
    with pytest.raises(CheckpointError, match="expands more than 100-fold"):
        load(path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (1, 16, 16, 3, 10**12)}
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tokenizer/embedding/kernel.npy", header.getvalue() + bytes(64))
    with pytest.raises(CheckpointError, match=r"float32 .* is larger than the file"):
        load(path)


def released_autoencoder(folder: Path, change=lambda arrays: None) -> TRecViT:
    """A file of the layout that `base_mae` is expected to have, where the zoo looks for it, and the model it is of."""
    model = tiny_model(num_classes=0, pooling="mean", image_size=(24, 24))
    arrays = to_official(model.config, model.state_dict())
    arrays["decoder/mask_token"] = np.ones((1, 1, 8), np.float32)
    arrays["step"] = np.array(7)
    change(arrays)
    np.savez(folder / ZOO["base_mae"].filename, **arrays)
    return model


def test_of_the_released_autoencoder_the_backbone_is_taken_and_the_rest_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("TRECVIT_CACHE", str(tmp_path))
    expected = released_autoencoder(tmp_path)
    got = load("base_mae")
    assert got.head is None
    assert got.config == expected.config.replace(min_radius=0.5, head_width=ModelConfig().head_width)
    assert all(torch.equal(got.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())
    assert got.provenance["not taken"] == "decoder/mask_token (1, 1, 8), step ()"
    assert got.provenance["source"] == ZOO["base_mae"].url
    again = load(got.save(tmp_path / "model"))
    assert again.provenance == got.provenance
    with pytest.raises(CheckpointError, match=r"2 left over: decoder/mask_token \(1, 1, 8\), step"):
        load(tmp_path / ZOO["base_mae"].filename)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda arrays: arrays.pop("encoder/encoder_norm/bias"), r"1 missing: encoder/encoder_norm/bias \(16,\)"),
        (lambda arrays: arrays.update({"encoder/new": arrays["step"]}), r"1 left over: encoder/new \(\)"),
        # A learnt position or class token under another name must not become a model without one.
        (
            lambda arrays: arrays.update({"tokenizer/places": arrays.pop("tokenizer/pos_embedding")}),
            r"1 left over: tokenizer/places \(1, 9, 16\)",
        ),
        (
            lambda arrays: [arrays.update({f"params/{name}": arrays.pop(name)}) for name in list(arrays)],
            "expected arrays under tokenizer/ and encoder/, got params/tokenizer/embedding/kernel",
        ),
    ],
)
def test_a_backbone_is_not_taken_half(tmp_path, monkeypatch, change, complaint):
    monkeypatch.setenv("TRECVIT_CACHE", str(tmp_path))
    released_autoencoder(tmp_path, change)
    with pytest.raises(CheckpointError, match=complaint):
        load("base_mae")
