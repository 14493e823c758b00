"""Saved models: lossless, loaded completely or not at all, no code run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from models import TINY, random_video, tiny_local_tracker, tiny_model, tiny_readout_tracker, tiny_tracker

from paper.memoriser import Memoriser, MemoriserConfig
from trecvit.config import ModelConfig, Preprocessing
from trecvit.data.class_names import class_names
from trecvit.errors import CheckpointError, ConfigError
from trecvit.model.mae import AutoencoderConfig, MaskedAutoencoder, decoder_config
from trecvit.model.trecvit import TRecViT, create_model
from trecvit.pretrained import CONFIG_FILE, PROCESSOR_FILE, WEIGHTS_FILE
from trecvit.weights.load import convert, load
from trecvit.weights.zoo import ZOO


@pytest.fixture
def model() -> TRecViT:
    plan = Preprocessing(image_size=(16, 24), num_frames=8, frame_stride=3, frame_rate_fps=12.5)
    made = TRecViT(ModelConfig(**TINY), preprocessing=plan, labels=list("abcde"), provenance={"source": "a test"})
    made.load_state_dict(tiny_model().state_dict())
    return made.eval()


def assert_same(got: TRecViT, expected: TRecViT) -> None:
    assert got.config == expected.config
    assert got.preprocessing == expected.preprocessing
    assert got.labels == expected.labels
    assert got.provenance == expected.provenance
    assert not got.training
    assert torch.equal(got(random_video()).logits, expected(random_video()).logits)
    assert all(parameter.requires_grad for parameter in got.parameters())


def test_a_folder_holds_everything(tmp_path, model):
    folder = model.save(tmp_path / "deep" / "folder")
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    assert_same(TRecViT.load(folder), model)
    assert_same(load(folder), model)
    assert_same(load(str(folder)), model)


def test_the_hubs_methods_read_and_write_the_same_folder(tmp_path, model):
    model.save_pretrained(tmp_path)
    assert_same(TRecViT.from_pretrained(tmp_path), model)
    assert_same(load(tmp_path), model)
    assert "library_name: trecvit" in (tmp_path / "README.md").read_text()


def test_push_to_hub_uploads_the_folder(tmp_path, model, monkeypatch):
    uploads = []

    class Api:
        def __init__(self, **_):
            pass

        def create_repo(self, repo_id, **_):
            return type("Url", (), {"repo_id": repo_id})()

        def upload_folder(self, *, repo_id, folder_path, **_):
            uploads.append((repo_id, sorted(path.name for path in folder_path.iterdir())))
            return "url of the commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert model.push_to_hub("someone/model") == "url of the commit"
    assert uploads == [("someone/model", ["README.md", CONFIG_FILE, WEIGHTS_FILE, PROCESSOR_FILE])]


def every_kind():
    """A model of each class that has `from_pretrained`."""
    blocks = ModelConfig(**{**TINY, "num_classes": 0})
    return {
        "TRecViT": tiny_model(),
        "TAPNext": tiny_tracker(),
        "ReadoutTracker": tiny_readout_tracker(),
        "LocalTracker": tiny_local_tracker(),
        "MaskedAutoencoder": MaskedAutoencoder(AutoencoderConfig(blocks=blocks, decoder=decoder_config(blocks))),
        "Memoriser": Memoriser(MemoriserConfig(blocks=blocks, offset=1)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", every_kind())
def test_from_pretrained_honours_or_refuses_every_argument(tmp_path, kind):
    model = every_kind()[kind].half()
    folder, load_it = model.save(tmp_path), type(model).from_pretrained
    assert load_it(folder).dtype == torch.float32
    for give in ({"dtype": torch.bfloat16}, {"torch_dtype": "bfloat16"}, {"dtype": "torch.bfloat16", "device": "cpu"}):
        assert load_it(folder, **give).dtype == torch.bfloat16
    assert load_it(folder, torch_dtype=torch.bfloat16, dtype="bfloat16").dtype == torch.bfloat16
    assert load_it(str(folder), torch_dtype="auto", token=None, cache_dir=tmp_path).dtype == torch.float16
    for name, words in {
        "strct": "unexpected argument 'strct'",
        "torch_type": "did you mean 'torch_dtype'",
        "device_map": "did you mean 'device'",
        "local_file_only": "did you mean 'local_files_only'",
        "subfolder": "unexpected argument 'subfolder'",
        **dict.fromkeys(
            ("num_classes", "num_labels", "id2label", "image_size", "config", "labels"), "config.json determines"
        ),
    }.items():
        with pytest.raises(TypeError, match=f"{kind}.from_pretrained.*{words}"):
            load_it(folder, **{name: 5})
    for give, words in (
        ({"dtype": "float17"}, "dtype: expected one of float32.*got 'float17'.*did you mean 'float1?6?'?"),
        ({"dtype": torch.int8}, "dtype: expected one of float32.*got torch.int8"),
        ({"dtype": "float16", "torch_dtype": torch.float32}, "got torch.float16 and torch.float32"),
        ({"device": "cuda:77"}, "device 'cuda:77' cannot be used here"),
        ({"revision": "main"}, "no revision for a folder"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_it(folder, **give)


def test_save_pretrained_honours_or_refuses_every_argument(tmp_path, model):
    for give, words in (
        ({"safe_serialization": False}, "unexpected argument 'safe_serialization'"),
        ({"max_shard_size": "5GB"}, "unexpected argument 'max_shard_size'"),
        ({"push_to_hubb": True}, "did you mean 'push_to_hub'"),
        ({"private": True}, "expected 'private' only with push_to_hub=True"),
        ({"repo_id": "someone/model"}, "expected 'repo_id' only with push_to_hub=True"),
        ({"config": {"num_classes": 3}}, "expected no config"),
    ):
        with pytest.raises(TypeError, match=words):
            model.save_pretrained(tmp_path / "new", **give)
    assert not (tmp_path / "new").exists()


def test_a_refused_save_leaves_the_folder_unchanged(tmp_path, model):
    model.save_pretrained(tmp_path)
    other = tiny_model()
    other.norm = torch.nn.Identity()
    for save in (other.save, other.save_pretrained):
        with pytest.raises(CheckpointError, match="not saved"):
            save(tmp_path)
    assert_same(load(tmp_path), model)


@pytest.mark.slow
@pytest.mark.parametrize("bias", ["with a new bias", "of fewer rows"])
@pytest.mark.parametrize("num_classes", [3, 5, 7])
def test_a_replaced_head_is_saved_with_its_classes(tmp_path, model, num_classes, bias):
    old, new = model.head.classifier, torch.nn.Linear(model.config.head_width, num_classes)
    if bias == "of fewer rows":
        old.weight, old.bias = torch.nn.Parameter(new.weight), torch.nn.Parameter(new.bias)
    else:
        model.head.classifier = new
    if num_classes == 5:
        model.save(tmp_path)
        assert load(tmp_path).labels == tuple("abcde")
    else:
        with pytest.warns(UserWarning, match=f"has {num_classes} classes and 5 labels.*relabel"):
            model.save(tmp_path)
        assert load(tmp_path).labels == ()
    got = load(tmp_path)
    assert got.config == model.config.replace(num_classes=num_classes)
    assert torch.equal(got(random_video()).logits, model(random_video()).logits)
    model.relabel([f"class {number}" for number in range(num_classes)])
    assert_same(load(model.save(tmp_path)), model)


def test_a_removed_head_is_saved_as_none(tmp_path, model):
    model.relabel([])
    model.head = None
    got = load(model.save(tmp_path))
    assert got.config.num_classes == 0
    assert torch.equal(got(random_video()).features, model(random_video()).features)


def without(*names):
    def change(model):
        for name in names:
            model.set_submodule(name, torch.nn.Identity())

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("head"), r"1 replaced: head \(Identity instead of Head\); 4 missing: head.pre_logits"),
        (without("head.classifier"), "2 missing: head.classifier.weight"),
        (without("norm", "blocks.1.spatial.mlp_up"), "4 missing"),
        (
            lambda m: setattr(m.head, "classifier", torch.nn.Linear(12, 5, bias=False)),
            "1 missing: head.classifier.bias",
        ),
        (lambda m: setattr(m.head, "classifier", torch.nn.Linear(11, 5)), r"head.classifier.weight .* \(5, 11\)"),
        (
            lambda m: setattr(m.head, "classifier", torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(12, 5))),
            r"2 left over: head.classifier.1.weight",
        ),
        (lambda m: setattr(m, "norm", torch.nn.GroupNorm(1, 16)), r"replaced: norm \(GroupNorm instead of LayerNorm\)"),
        (lambda m: setattr(m, "extra", torch.nn.Linear(2, 3)), "2 left over: extra.weight"),
        (lambda m: m.register_buffer("mean", torch.zeros(3)), "1 left over: mean"),
        (lambda m: m.blocks.append(m.blocks[0]), r"left over: blocks\.2\."),
        (lambda m: torch.nn.utils.parametrizations.weight_norm(m.head.pre_logits), "missing: head.pre_logits.weight"),
        (
            lambda m: setattr(m.norm, "weight", torch.nn.Parameter(m.norm.weight.to("meta"))),
            "norm.weight has no values",
        ),
        (lambda m: setattr(m.norm, "bias", torch.nn.Parameter(torch.zeros(16, dtype=torch.int64), False)), "norm.bias"),
    ],
)
def test_a_model_that_could_not_be_loaded_again_is_not_saved(tmp_path, model, change, words):
    change(model)
    with pytest.raises(CheckpointError, match=f"not saved: expected .*{words}"):
        model.save(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", every_kind())
def test_saved_models_load_with_equal_weights(tmp_path, kind):
    model = every_kind()[kind]
    model.blocks[1].spatial = model.blocks[0].spatial  # tied
    model.blocks[0].spatial.mlp_up.to(torch.bfloat16)  # of two dtypes
    got = type(model).load(model.save(tmp_path), dtype="auto").state_dict()
    expected = model.state_dict()
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name], tensor)
    model.tokenizer.embedding = torch.nn.Linear(3, 16)
    with pytest.raises(CheckpointError, match=r"tokenizer\.embedding\.weight"):
        model.save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
def test_weights_load_as_float32_by_default(tmp_path, model, stored):
    model.to(stored).save(tmp_path)
    assert load(tmp_path).dtype == torch.float32
    assert load(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_labels_can_be_given_when_converting(tmp_path, model):
    names = tmp_path / "names.txt"
    names.write_text("one\ntwo\nthree\nfour\nfünf\n", encoding="utf-8")
    model.save(tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "named", labels=names)
    assert load(tmp_path / "named").labels == ("one", "two", "three", "four", "fünf")
    with pytest.raises(ConfigError, match="expected 5 labels, one per class, got 400"):
        convert(tmp_path / "model", tmp_path / "k400", labels="kinetics400")
    with pytest.raises(CheckpointError, match="holds no class names"):
        convert(tmp_path / "model", tmp_path / "model.npz", labels=names)
    tiny_model(temporal_mixer="none").save(tmp_path / "blind")
    with pytest.raises(CheckpointError, match="temporal_mixer='none'"):
        convert(tmp_path / "blind", tmp_path / "blind.npz")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("cat", "expected a list of names, one per class, got str 'cat'"),
        (b"cat", "got bytes b'cat'"),
        (7, "got int 7"),
        ({"cat": 0, "dog": 1, "cow": 2}, "a mapping from 0 ... 2 to names, got a mapping with the keys 'cat', 'dog'"),
        ({1: "cat", 2: "dog", 3: "cow"}, "a mapping with the keys 1, 2, 3"),
        ({"cat", "dog", "cow"}, "a set, which has no order"),
        (range(3), "expected text as the name of class 0, got int 0"),
        (["cat", None, "cow"], "class 1, got NoneType None"),
        (np.array(["cat", "dog", "cow"]).astype(np.bytes_), "class 0, got bytes_"),
        (["cat", "dog", "cat"], "expected each name once, got 'cat' for classes 0 and 2"),
        (["cat", "dog", ""], "name for class 2, got '', which is empty"),
        (["cat", "dog", " \t"], "class 2.*which is empty"),
        (["cat", " dog", "cow"], "class 1, got ' dog', with white space"),
        (["\ufeffcat", "dog", "cow"], r"class 0.*a byte-order mark"),
        (["cat", "dog\ncow", "cow"], "class 1.*line break"),
        (["cat", "dog\u2028", "d\u2028og"], "class 1"),
        (["cat", "dog", "c\udcffw"], "class 2.*not valid Unicode"),
        (["cat", "dog"], "expected 3 labels, one per class, got 2"),
    ],
)
def test_invalid_class_names_are_refused_before_saving(names, words):
    named = create_model("tiny", depth=1, labels=["a", "b", "c"])
    for give in (named.relabel, lambda names: setattr(named, "labels", names)):
        with pytest.raises(ConfigError, match=words):
            give(names)
    assert named.labels == ("a", "b", "c")


@pytest.mark.parametrize("names", ["abc", ["a", "a", "c"], {"a": 0, "b": 1, "c": 2}])
def test_a_model_is_not_built_with_invalid_class_names(names):
    with pytest.raises(ConfigError, match="labels: expected"):
        create_model("tiny", depth=1, labels=names)
    with pytest.raises(ConfigError, match="labels: expected"):
        TRecViT(ModelConfig(**{**TINY, "num_classes": 3}), labels=names)


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ["cat", "dog"],
        (name for name in ("cat", "dog")),
        {"cat": 1, "dog": 2}.keys(),
        {1: "dog", 0: "cat"},
        {"1": "dog", "0": "cat"},
        {np.int64(1): "dog", np.int64(0): "cat"},
        np.array(["cat", "dog"]),
    ],
)
def test_names_of_classes_become_plain_strings_in_order(tmp_path, names):
    model = create_model("tiny", depth=1, labels=names)
    assert model.labels == ("cat", "dog")
    assert {type(name) for name in model.labels} == {str}
    assert model.config.num_classes == 2
    assert load(model.save(tmp_path)).labels == ("cat", "dog")


def test_duplicate_names_of_earlier_releases_still_load(tmp_path, model):
    model.save(tmp_path)
    old = ["a", "a", "", " b", "\ufeffc"]
    change_description(tmp_path, lambda d: d.update(labels=old))
    assert list(load(tmp_path).labels) == old
    assert list(load(load(tmp_path).save(tmp_path / "again")).labels) == old


def change_description(folder, change) -> None:
    path = folder / CONFIG_FILE
    description = json.loads(path.read_text())
    change(description)
    path.write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(format="other"), "expected the format 'trecvit-1', got 'other'"),
        (
            lambda d: d.update(architecture="ViViT"),
            "expected architecture 'TRecViT' or .*, got 'ViViT'",
        ),
        (lambda d: d["model"].update(widht=3), "no field 'widht', did you mean 'width'"),
        (lambda d: d["model"].update(width="16"), "width: expected a whole number"),
        (lambda d: d["model"].update(width=32), "of another shape or type"),
        (lambda d: d["model"].update(depth=3), r"missing: blocks\.2\."),
        (lambda d: d["model"].update(depth=1), r"left over: blocks\.1\."),
        (lambda d: d.update(labels=["a"]), "expected 5 labels, one per class, got 1"),
        (lambda d: d.update(labels=[1, 2, 3, 4, 5]), "every label to be text"),
        (lambda d: d.pop("preprocessing"), "expected 'preprocessing' to be a dict"),
        (lambda d: d["preprocessing"].update(num_frames=0), "num_frames: expected a whole number >= 1"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(tmp_path, model, change, words):
    model.save(tmp_path)
    change_description(tmp_path, change)
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path)


def test_huge_sizes_in_a_config_allocate_no_memory(tmp_path, model):
    model.save(tmp_path)
    change_description(tmp_path, lambda d: d["model"].update(width=2**22, mlp_width=2**22, head_width=2**22))
    with pytest.raises(CheckpointError, match="of another shape"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"format": "trecvit-1"}', b"[" * 100_000])
def test_damaged_descriptions_are_refused(tmp_path, model, content):
    model.save(tmp_path)
    (tmp_path / CONFIG_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=CONFIG_FILE):
        load(tmp_path)


def test_damaged_weights_are_refused(tmp_path, model):
    model.save(tmp_path)
    whole = (tmp_path / WEIGHTS_FILE).read_bytes()
    for content in (b"", b"x" * 100, whole[: len(whole) // 2], whole[:-1], b"\xff" * 8 + whole[8:]):
        (tmp_path / WEIGHTS_FILE).write_bytes(content)
        with pytest.raises(CheckpointError, match=WEIGHTS_FILE):
            load(tmp_path)


def test_missing_files_are_named(tmp_path, model):
    with pytest.raises(CheckpointError, match=r"config\.json: no such file; a model's folder holds"):
        load(tmp_path)
    model.save(tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file"):
        load(tmp_path)


def test_an_interrupted_save_leaves_the_old_model_whole(tmp_path, model, monkeypatch):
    model.save(tmp_path)
    other = tiny_model(depth=1)
    monkeypatch.setattr("safetensors.torch.save_file", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        other.save(tmp_path)
    assert_same(load(tmp_path), model)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_unknown_names_are_refused_with_the_nearest(tmp_path):
    with pytest.raises(CheckpointError, match=r"did you mean 'motions'.*base_k400"):
        load("motion")
    (tmp_path / "video.mp4").touch()
    with pytest.raises(CheckpointError, match=r"expected a folder with model\.safetensors"):
        load(tmp_path / "video.mp4")
    with pytest.raises(CheckpointError, match=r"motions: expected no overrides, since it has a config.json; got width"):
        load("motions", width=3)
    for source in ("motions", tmp_path / "model.npz"):
        with pytest.raises(TypeError, match="load: unexpected argument 'torch_dtype', did you mean 'dtype'"):
            load(source, torch_dtype=torch.float16)
    with pytest.raises(ConfigError, match="dtype: expected one of float32"):
        load("motions", dtype="int8")


def test_the_bundled_model_is_small_and_answers():
    model = load("motions")
    assert len(model.labels) == 18
    video = torch.zeros(1, 4, 3, *model.preprocessing.image_size, dtype=torch.uint8)
    assert torch.isfinite(model(video).logits).all()


def test_models_can_be_copied_and_moved_between_processes(model):
    import copy
    import io

    assert_same(copy.deepcopy(model), model)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    again = TRecViT(model.config)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(again(random_video()).logits, model(random_video()).logits)


@pytest.mark.parametrize("field", ["width", "depth", "head_width"])
def test_sizes_that_no_model_can_have_are_refused_at_once(tmp_path, model, field):
    model.save(tmp_path)
    change_description(tmp_path, lambda d: d["model"].update({field: 2**40 if field != "depth" else 10**9}))
    with pytest.raises(CheckpointError):
        TRecViT.load(tmp_path)


def test_a_name_of_the_zoo_loads_with_its_classes_and_its_origin(tmp_path, monkeypatch):
    monkeypatch.setenv("TRECVIT_CACHE", str(tmp_path))
    fields = {**TINY, "image_size": (16, 16), "num_classes": 400}
    released = TRecViT(ModelConfig(**fields, lru_multiplier=2, min_radius=0.5))
    released.save(tmp_path / "folder")
    convert(tmp_path / "folder", tmp_path / ZOO["base_k400"].filename)
    got = load("base_k400")
    assert got.labels == class_names("kinetics400")
    assert got.provenance["source"] == ZOO["base_k400"].url
    assert torch.equal(got.tokenizer.embedding.weight, released.tokenizer.embedding.weight)


def test_a_repository_of_the_hub_is_read_from_its_cache(tmp_path, model):
    cached = tmp_path / "models--someone--trecvit"
    model.save(cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    assert_same(TRecViT.from_pretrained("someone/trecvit", cache_dir=tmp_path, local_files_only=True), model)


def test_an_unavailable_device_is_refused(tmp_path, model):
    for name in ("foo", "cuda:7"):
        with pytest.raises(ConfigError, match=f"device '{name}' cannot be used here"):
            load(model.save(tmp_path), device=name)


@pytest.mark.parametrize("provenance", [None, {"source": {1, 2}}, {"source": object()}])
def test_a_description_that_could_not_be_read_is_not_saved(tmp_path, provenance):
    model = tiny_model()
    model.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model.provenance = provenance
    with torch.no_grad():
        model.norm.weight.add_(1.0)
    with pytest.raises(CheckpointError, match=r"provenance|plain JSON values"):
        model._save(
            tmp_path, model.state_dict()
        )  # `save` first builds a model on the meta device, where the tests check its types
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
