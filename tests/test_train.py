from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from command_line import trecvit

import paper  # noqa: F401 - its recipes
from trecvit.bench.training import loader_speed, update_costs
from trecvit.errors import CheckpointError, ConfigError, DataError
from trecvit.model.trecvit import TRecViT
from trecvit.processes import Processes, Share
from trecvit.synthetic.world import LABELS, World, WorldConfig
from trecvit.train.checkpoints import Checkpoints
from trecvit.train.initialise import initial_model, scale_initial_weights, whiten_patches
from trecvit.train.loop import train
from trecvit.train.networks import untrained
from trecvit.train.optimise import optimisers_of, schedule
from trecvit.train.recipe import load_recipe
from trecvit.train.scenes import SceneFeed
from trecvit.train.sections import Optimisation
from trecvit.weights.load import load

# Epochs, dropout of the head, RandAugment or not, and classes: where the paper's two data sets differ.
PAPERS = {"kinetics400": (30, 0.0, False, 400), "something_something_v2": (35, 0.1, True, 174)}
ROOT = Path(__file__).parent.parent
RECIPES = sorted([*(ROOT / "src" / "trecvit" / "recipes").glob("*.yaml"), *(ROOT / "paper" / "recipes").glob("*.yaml")])
SMALL = """
model:
  {preset: tiny, width: 16, depth: 1, num_heads: 2, mlp_width: 16, head_width: 8, patch_size: 16, image_size: 32,
   num_classes: 18, pooling: mean}
preprocessing: {image_size: 32, num_frames: 4, frame_stride: 1}
scenes:
  world: {num_frames: 4, image_size: [32, 32]}
  photographs: false
optimisation: {bf16: false, num_steps: 6, batch_size: 4, warmup_steps: 2}
num_workers: 0
log_every: 2
checkpoint_every: 2
"""


@pytest.fixture
def recipe_path(tmp_path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[TRecViT, Path]:
    """The model of the small recipe, and the folder of its run."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.yaml").write_text(SMALL)
    return train(load_recipe(folder / "small.yaml"), folder / "run"), folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_builds(path):
    recipe = load_recipe(path)
    with torch.device("meta"):
        model = untrained(recipe.architecture, preprocessing=recipe.preprocessing)
    count = sum(parameter.numel() for parameter in model.parameters())
    expected = {
        "world": 909_842, "world_files": 909_842, "kinetics400": 111_913_360, "something_something_v2": 111_218_862,
        "track_world": 2_865_985, "track_world_long": 2_865_985, "track_world_end": 2_865_985,
        "track_world_match": 3_143_596,
        "track_readout_world": 1_589_956, "track_streams": 996_823, "actions": 17_094_166,
        "mae_world": 1_383_456, "frozen_world": 1_383_456, "mae_k400": 117_995_136, "study_world": 538_002,
        "memory_world": 476_544, "memory_walking_tours": 108_911_616,
    }  # fmt: skip
    assert count == expected[path.stem]
    assert optimisers_of(model, recipe.optimisation)


def test_the_paper_s_recipes_say_what_its_table_9_says():
    recipes = {name: load_recipe(name) for name in PAPERS}
    for name, recipe in recipes.items():
        plan, clips, videos = recipe.optimisation, recipe.preprocessing, recipe.task.videos
        assert (plan.learning_rate, plan.weight_decay, plan.label_smoothing) == (1e-4, 0.03, 0.1)
        assert (clips.num_frames, clips.frame_stride, clips.image_size) == (32, 2, (224, 224))
        assert videos.augmentation.scale == (0.875, 1.33)
        assert (videos.eval_clips, videos.eval_crops) == (4, 3)
        assert recipe.start.vit
        differs = (plan.epochs, plan.head_dropout, videos.augmentation.rand_augment_ops > 0, recipe.model.num_classes)
        assert differs == PAPERS[name]


def test_the_paper_s_recipe_for_masked_autoencoding_says_what_its_table_10_says():
    recipe = load_recipe("mae_k400")
    plan, clips = recipe.optimisation, recipe.preprocessing
    assert (plan.learning_rate, plan.weight_decay, plan.epochs) == (3e-4, 0.05, 1600)
    assert (clips.num_frames, clips.frame_stride, clips.image_size) == (16, 2, (224, 224))
    assert recipe.task.mae.mask_ratio == 0.9
    steps_per_epoch = 241_512 // plan.batch_size
    assert plan.warmup_steps == 40 * steps_per_epoch
    assert recipe.task.mae.validate_every == 20 * steps_per_epoch


@pytest.mark.slow
def test_updates_are_measured_in_processes_of_their_own():
    costs = list(update_costs(["tiny"], [2], batch_size=2, image_px=32, num_updates=1))
    assert [(cost.num_frames, cost.recompute) for cost in costs] == [(2, "nothing"), (2, "cheap"), (2, "blocks")]
    assert all(cost.updates_per_s > 0 for cost in costs)
    # Weights, gradients and AdamW's two moments are there in any case.
    assert all(cost.memory_bytes > 4 * 4 * 6_000_000 for cost in costs)


@pytest.mark.slow
def test_a_run_leaves_a_model_a_log_and_the_resolved_recipe(tmp_path, recipe_path):
    lines = []
    model = train(load_recipe(recipe_path), tmp_path / "run", report=lines.append)
    assert [line.step for line in lines] == [2, 4, 6]
    assert all(np.isfinite(line.loss) for line in lines)
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [2, 4, 6]
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["optimisation"]["num_steps"] == 6
    again = load(tmp_path / "run" / "model")
    assert again.labels == LABELS
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)


@pytest.mark.slow
def test_the_same_recipe_gives_the_same_model(tmp_path, recipe_path, trained):
    first, second = trained[0], train(load_recipe(recipe_path), tmp_path / "two")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = train(load_recipe(recipe_path, ["seed=1"]), tmp_path / "three")
    assert not torch.equal(first.norm.weight, other.norm.weight)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_model(tmp_path, recipe_path):
    expected = train(load_recipe(recipe_path, ["optimisation.num_steps=20"]), tmp_path / "whole")
    code = (
        "import sys; from trecvit.train.loop import train; from trecvit.train.recipe import load_recipe; "
        "train(load_recipe(sys.argv[1], ['optimisation.num_steps=20']), sys.argv[2])"
    )
    run = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", code, str(recipe_path), str(run)])
    while not list(run.glob("checkpoints/*/whole.json")):
        time.sleep(0.01)
        assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (run / "model").exists()
    got = train(load_recipe(recipe_path, ["optimisation.num_steps=20"]), run)
    assert all(torch.equal(a, b) for a, b in zip(got.parameters(), expected.parameters(), strict=True))


def test_a_folder_of_another_run_or_a_damaged_checkpoint_is_refused(tmp_path, recipe_path, trained):
    run = shutil.copytree(trained[1], tmp_path / "run")
    with pytest.raises(CheckpointError, match="another recipe"):
        train(load_recipe(recipe_path, ["optimisation.num_steps=8"]), run)
    for path in (run / "checkpoints").iterdir():
        (path / "whole.json").write_bytes(b"damaged")
    with (
        pytest.warns(UserWarning, match="resuming from the previous checkpoint"),
        pytest.raises(CheckpointError, match="every checkpoint is damaged"),
    ):
        train(load_recipe(recipe_path), run)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "cut short", "one bit", "no list"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, recipe_path, trained, damage):
    expected, run = trained
    shutil.copytree(run, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "step-00000006"
    (weights,) = newest.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    if damage == "missing":
        weights.unlink()
    elif damage == "cut short":
        weights.write_bytes(content[:-1])
    elif damage == "one bit":
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    else:
        (newest / "whole.json").unlink()
    lines = []
    with pytest.warns(UserWarning, match=r"step-00000006.*resuming from the previous checkpoint"):
        got = train(load_recipe(recipe_path), tmp_path / "run", report=lines.append)
    assert [line.step for line in lines] == [6]  # from step 4 on
    assert all(torch.equal(a, b) for a, b in zip(got.parameters(), expected.parameters(), strict=True))


@pytest.mark.slow
def test_the_last_few_checkpoints_are_kept(tmp_path, recipe_path):
    words = ["optimisation.num_steps=6", "checkpoint_every=1", "keep_checkpoints=2"]
    train(load_recipe(recipe_path, words), tmp_path / "run")
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000005", "step-00000006"]


def test_a_checkpoint_of_another_model_is_refused(recipe_path, trained):
    model = TRecViT(load_recipe(recipe_path).model.replace(depth=2))
    optimiser = torch.optim.AdamW(model.parameters())
    with pytest.raises(CheckpointError, match="not a checkpoint of this model"):
        Checkpoints(trained[1] / "checkpoints", Processes(), keep=1).resume(model, [optimiser])


def test_a_checkpoint_of_a_deeper_model_is_refused(tmp_path, recipe_path):
    config = load_recipe(recipe_path).model
    checkpoints = Checkpoints(tmp_path, Processes(), keep=1)
    deep, shallow = (TRecViT(config.replace(depth=depth)) for depth in (2, 1))
    checkpoints.save(1, deep, [torch.optim.AdamW(deep.parameters())])
    with pytest.raises(CheckpointError, match=r"not a checkpoint of this model: it also has model\.blocks\.1"):
        checkpoints.resume(shallow, [torch.optim.AdamW(shallow.parameters())])


def test_the_learning_rate_warms_up_and_decays_to_zero():
    plan = Optimisation(num_steps=110, warmup_steps=10)
    rates = [schedule(step, plan, 110) for step in range(110)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx(0.5)
    assert rates[-1] < 1e-3
    assert all(a >= b for a, b in pairwise(rates[10:]))


@pytest.mark.slow
def test_a_small_model_can_learn_a_few_clips_by_heart():
    torch.manual_seed(0)
    recipe = {"width": 32, "depth": 2, "num_heads": 2, "mlp_width": 32, "head_width": 16, "patch_size": 8}
    from trecvit.config import model_config

    model = TRecViT(model_config("tiny", **recipe, image_size=32, num_classes=18, pooling="mean"))
    world = World(WorldConfig(num_frames=6, image_size=(32, 32)), seed=0)
    videos, labels = zip(*(world.pair(number) for number in range(4)), strict=True)
    clips, classes = torch.cat(videos), torch.tensor([label for pair in labels for label in pair])
    whiten_patches(model, clips)
    scale_initial_weights(model, convolutions=10.0, positions=5.0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(clips).logits, classes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert torch.equal(model(clips).logits.argmax(dim=1), classes)


@pytest.mark.slow
def test_whitened_patches_are_uncorrelated_and_of_one_size():
    from trecvit.config import model_config

    model = TRecViT(model_config("tiny", width=24, num_heads=2, patch_size=8, image_size=32, depth=1, pooling="mean"))
    world = World(WorldConfig(num_frames=4, image_size=(32, 32)), seed=0)
    videos = torch.cat([world.pair(number)[0] for number in range(40)])
    whiten_patches(model, videos)
    with torch.no_grad():
        tokens = model.tokenizer(videos.float() / 255) - model.tokenizer.positions
    covariance = tokens.flatten(0, 2).T.cov()
    # Small components stay small on purpose, so the whole is not quite the identity.
    assert torch.allclose(tokens.flatten(0, 2).mean(dim=0), torch.zeros(24), atol=1e-3)
    assert 0.5 < float(covariance.diagonal().mean()) <= 1.01
    assert float((covariance - covariance.diagonal().diag()).abs().max()) < 0.4


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["optimisation.num_step=3"], "did you mean 'num_steps'"),
        (["model.widht=3"], "did you mean 'width'"),
        (["optimizer.lr=1"], "no field 'optimizer', did you mean 'optimisation'"),
        (["model.num_classes=5"], "the world has 18 classes, got 5"),
        (["scenes.world.image_size=[64, 64]"], "must be the same"),
        (["optimisation.batch_size=3"], "expected a multiple of 2, got 3"),
        (["optimisation.epochs=3"], "one of them above 0, got 6 and 3"),
        (["optimisation.num_steps=0", "optimisation.epochs=3"], "scenes are endless"),
        (["optimisation.ema_decay=1.0"], "ema_decay"),
        (["videos={train: x}"], "`scenes` or `videos`, one of them"),
        (["scenes=3"], "is a section, not a value"),
        (["start.vitt=x"], "did you mean 'vit'"),
        (["scenes.views_per_scene=3"], "expected a multiple of 6, got 4"),
        (["scenes.views_per_scene=2", "scenes.world.image_size=[32, 64]"], "only square scenes"),
        (["optimisation.learning_rate=-1"], r"optimisation\.learning_rate: expected 0 or more, got -1"),
        (["optimisation.learning_rate=.nan"], r"optimisation\.learning_rate: expected 0 or more, got nan"),
        (["optimisation.learning_rate=.inf"], r"optimisation\.learning_rate: expected 0 or more, got inf"),
        (["optimisation.learning_rate=fast"], r"optimisation\.learning_rate: expected a number, got 'fast'"),
        (["optimisation.label_smoothing=1.5"], r"optimisation\.label_smoothing: expected 0 to 1, got 1.5"),
        (["optimisation.clip_norm=0"], r"optimisation\.clip_norm: expected more than 0, got 0"),
        (["optimisation.batch_size=2.5"], r"optimisation\.batch_size: expected a whole number, got 2.5"),
        (["optimisation.num_steps=true"], r"optimisation\.num_steps: expected a whole number, got True"),
        (["optimisation.compile=2"], r"optimisation\.compile: expected true or false, got 2"),
        (["optimisation.bf16=maybe"], r"optimisation\.bf16: expected auto, true or false, got 'maybe'"),
        (["num_workers=-1"], "num_workers and seed of 0 or more, got .* -1"),
        (["seed=-1"], "num_workers and seed of 0 or more, got .* -1"),
        (["log_every=x"], "log_every: expected a number, got 'x'"),
        (["scenes.easy_steps=-1"], r"scenes\.easy_steps: expected 0 or more, got -1"),
        (["start.conv_scale=-1"], r"start\.conv_scale: expected 0 or more, got -1"),
        (["seed"], r"expected section\.key=value"),
        (["seed.x=1"], "is a value, not a section"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(recipe_path, words, complaint):
    with pytest.raises(ConfigError, match=complaint):
        load_recipe(recipe_path, words)


def test_files_that_are_no_recipes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="expected a recipe in YAML"):
        load_recipe(tmp_path / "none.yaml")
    for text in ("[1, 2]", "a: [", "!!python/object/apply:os.getcwd []"):
        (tmp_path / "odd.yaml").write_text(text)
        with pytest.raises(ConfigError, match="expected a recipe in YAML"):
            load_recipe(tmp_path / "odd.yaml")


def scene_feed(recipe) -> SceneFeed:
    return SceneFeed(recipe, recipe.task.clips)


def test_every_scene_is_shown_as_often_as_the_recipe_says_each_time_another_way(recipe_path):
    words = ["optimisation.num_steps=300", "optimisation.batch_size=8", "scenes.views_per_scene=4"]
    feed = scene_feed(load_recipe(recipe_path, words))
    shown = [view for step in range(300) for view in feed.views(step)]
    assert len(shown) == len(set(shown)) == 300 * 4
    assert {number for number, _ in shown} == set(range(300))
    assert all(len({number for number, _ in feed.views(step)}) == 4 for step in range(300))
    plain = scene_feed(load_recipe(recipe_path))
    assert sorted(number for step in range(6) for number, _ in plain.views(step)) == list(range(12))


@pytest.mark.slow
def test_a_step_shows_the_same_clips_wherever_the_run_began(recipe_path):
    words = ["optimisation.num_steps=130", "scenes.views_per_scene=2", "scenes.easy_steps=100"]
    feed = scene_feed(load_recipe(recipe_path, words))
    whole, late = list(feed.batches(0, Share())), list(feed.batches(127, Share()))
    assert (len(whole), len(late)) == (130, 3)
    for batch, again in zip(whole[127:], late, strict=True):
        assert torch.equal(batch.videos, again.videos)
        assert torch.equal(batch.labels, again.labels)
        assert torch.equal(batch.labels[::2] ^ 1, batch.labels[1::2])


@pytest.mark.slow
def test_processes_share_every_step_without_overlap(recipe_path):
    feed = scene_feed(load_recipe(recipe_path, ["optimisation.batch_size=8", "scenes.views_per_scene=2"]))
    alone = list(feed.batches(0, Share()))
    shared = [list(feed.batches(0, Share(number, 2))) for number in (0, 1)]
    for whole, *parts in zip(alone, *shared, strict=True):
        clips = [clip.numpy().tobytes() for part in parts for clip in part.videos]
        assert sorted(clips) == sorted(clip.numpy().tobytes() for clip in whole.videos)
    with pytest.raises(ConfigError, match="3 processes cannot share 4 pairs"):
        next(feed.batches(0, Share(0, 3)))


@pytest.mark.slow
def test_easier_scenes_come_first(recipe_path):
    """Easy scenes have no noise, the others have much."""
    words = ["optimisation.num_steps=60", "scenes.world.noise=60.0"]
    easier, hard = (
        scene_feed(load_recipe(recipe_path, [*words, f"scenes.easy_steps={steps}"])).batches(0, Share())
        for steps in (60, 0)
    )
    easy = [not torch.equal(one.videos, other.videos) for one, other in zip(easier, hard, strict=True)]
    assert easy[0]
    assert sum(easy[:20]) >= 15
    assert 0 < sum(easy[40:]) < sum(easy[:20])


@pytest.mark.slow
def test_muon_moves_the_linear_maps_of_the_blocks_and_nothing_else(tmp_path, recipe_path):
    still = ["optimisation.num_steps=1", "optimisation.learning_rate=0.0"]
    start = train(load_recipe(recipe_path, still), tmp_path / "start")
    moved = train(load_recipe(recipe_path, [*still, "optimisation.muon_learning_rate=0.02"]), tmp_path / "moved")
    changed = {
        name
        for (name, before), after in zip(start.named_parameters(), moved.parameters(), strict=True)
        if not torch.equal(before, after)
    }
    linear = {f"blocks.{n}.weight" for n, layer in start.blocks.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert changed == linear


def test_first_weights_are_scaled_where_said(recipe_path):
    recipe = load_recipe(recipe_path)
    model = TRecViT(recipe.model)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    scale_initial_weights(model, convolutions=10.0, positions=5.0)
    for name, after in model.named_parameters():
        factor = 10.0 if name.endswith("temporal.conv.weight") else 5.0 if name == "tokenizer.positions" else 1.0
        assert torch.equal(after, before[name] * factor), name


@pytest.mark.slow
def test_a_compiled_model_is_trained_alike(tmp_path, recipe_path, forks):
    losses = {}
    for words in ("false", "true"):
        run = tmp_path / words
        start = forks.trecvit if words == "true" else trecvit
        done = start("train", recipe_path, "--to", run, f"optimisation.compile={words}")
        assert done.returncode == 0, done.stderr[-3000:]
        losses[words] = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert load(run / "model").labels == LABELS
    assert losses["true"] == pytest.approx(losses["false"], rel=1e-4)


def test_weight_decay_is_on_matrices_only(recipe_path):
    model = TRecViT(load_recipe(recipe_path).model)
    (adamw,) = optimisers_of(model, Optimisation(num_steps=1, weight_decay=0.3))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed = {names[id(p)] for group in adamw.param_groups if group["weight_decay"] for p in group["params"]}
    spared = {names[id(p)] for group in adamw.param_groups if not group["weight_decay"] for p in group["params"]}
    assert decayed | spared == set(names.values())
    assert decayed == {
        name for name in names.values()
        if name.endswith("weight") and "norm" not in name
    }  # fmt: skip
    assert {"blocks.0.temporal.lru.a_param", "tokenizer.positions", "blocks.0.temporal.norm.scale"} <= spared


@pytest.mark.slow
def test_gradients_are_clipped_and_labels_smoothed(tmp_path, recipe_path, monkeypatch):
    norms = []
    step = torch.optim.AdamW.step

    def watched(self, *given):
        parameters = [p for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in parameters])))
        return step(self, *given)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    first = {}
    for smoothing in (0.0, 0.5):
        words = ["optimisation.clip_norm=0.01", f"optimisation.label_smoothing={smoothing}", "log_every=1"]
        lines = []
        train(load_recipe(recipe_path, words), tmp_path / str(smoothing), report=lines.append)
        first[smoothing] = lines[0].loss
    assert norms == pytest.approx([0.01] * 12, rel=1e-3)
    # The same clips and weights: half of the target now stands on all classes alike.
    recipe = load_recipe(recipe_path, ["optimisation.label_smoothing=0.5"])
    torch.manual_seed(recipe.seed)
    model, _ = initial_model(recipe, scene_feed(recipe))
    batch = next(scene_feed(recipe).batches(0, Share()))
    log_probs = model(batch.videos).logits.detach().log_softmax(dim=1)
    own, all_alike = -log_probs.gather(1, batch.labels[:, None]).mean(), -log_probs.mean()
    assert first[0.0] == pytest.approx(float(own), rel=1e-5)
    assert first[0.5] == pytest.approx(float(0.5 * own + 0.5 * all_alike), rel=1e-5)


@pytest.mark.slow
def test_the_loaders_speed_is_measured_beside_the_models(recipe_path):
    done = []
    recipe = load_recipe(recipe_path, ["optimisation.num_steps=12"])
    speed = loader_speed(recipe, workers=[0, 1], num_steps=3, report=done.append)
    assert set(speed.made) == {0, 1}
    assert min(*speed.made.values(), speed.used) > 0
    assert done == [1, 2, 3]
    with pytest.raises(ConfigError, match="at least 3 steps to time"):
        loader_speed(load_recipe(recipe_path, ["optimisation.num_steps=2"]), workers=[0])


def test_scenes_may_be_made_of_anyones_pictures(tmp_path, recipe_path):
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    (tmp_path / "pictures").mkdir()
    PIL.Image.fromarray(picture).save(tmp_path / "pictures" / "mine.png")
    plain, mine = (
        next(scene_feed(load_recipe(recipe_path, words)).batches(0, Share())).videos
        for words in ([], [f"scenes.pictures={tmp_path / 'pictures'}"])
    )
    assert not torch.equal(plain, mine)
    with pytest.raises(DataError, match="no such folder"):
        next(scene_feed(load_recipe(recipe_path, ["scenes.pictures=nowhere"])).batches(0, Share()))
