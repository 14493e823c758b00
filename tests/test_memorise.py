"""Long-video memorisation: models, scenery, training, longer streams, and the two studies."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from paper import memory, tables
from paper.commands import app
from paper.forgetting import FORGETTINGS, Forgetting
from paper.memoriser import Memoriser, MemoriserConfig, past_frame
from paper.memory import OURS, VIVIT, Plan
from paper.recall import evaluate_memory, recall_in_streams
from paper.scenery import Scenery, SceneryConfig
from paper.vivit import VivitMemoriser, VivitMemoriserConfig
from trecvit.config import model_config
from trecvit.errors import CheckpointError, ConfigError, InputError
from trecvit.model.scan import GATE_SHARPNESS
from trecvit.processes import Processes, Share
from trecvit.train.initialise import initial_model
from trecvit.train.loop import train
from trecvit.train.optimise import optimisers_of
from trecvit.train.recipe import load_recipe
from trecvit.train.run_folder import outcome, read_lines
from trecvit.train.sections import Optimisation
from trecvit.video.encode import VideoWriter

ROOT = Path(__file__).parents[1]
MODEL = {
    "preset": "tiny", "width": 16, "depth": 2, "num_heads": 2, "mlp_width": 16, "patch_size": 8, "image_size": 32,
    "pooling": "mean", "num_classes": 0,
}  # fmt: skip
SMALL = {
    "model": MODEL,
    "preprocessing": {"image_size": 32, "num_frames": 4, "frame_stride": 1},
    "memory": {"offset": 2, "scenery": {}, "photographs": False, "validation_clips": 3},
    "optimisation": {"bf16": False, "num_steps": 4, "batch_size": 4, "warmup_steps": 1},
    "num_workers": 0,
    "log_every": 1,
    "checkpoint_every": 2,
}
AS_VIVIT = "memory.network=vivit"


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


@pytest.fixture(scope="module")
def memoriser() -> Memoriser:
    torch.manual_seed(0)
    fields = {key: value for key, value in MODEL.items() if key != "preset"}
    return Memoriser(MemoriserConfig(blocks=model_config("tiny", **fields), offset=2)).eval()


@pytest.fixture(scope="module")
def vivit() -> VivitMemoriser:
    torch.manual_seed(0)
    sizes = {key: MODEL[key] for key in ("width", "depth", "num_heads", "mlp_width", "patch_size", "image_size")}
    return VivitMemoriser(VivitMemoriserConfig(**sizes, num_frames=4, offset=2)).eval()


# ---- models --------------------------------------------------------------------------------------------------------


def test_frames_are_counted_back_from_the_last():
    video = torch.arange(5, dtype=torch.uint8)[None, :, None, None, None].expand(2, 5, 3, 2, 2)
    for offset in range(5):
        assert torch.equal(past_frame(video, offset), torch.full((2, 3, 2, 2), (4 - offset) / 255))
    assert torch.equal(past_frame(video.float() / 255, 3), past_frame(video, 3))
    for offset in (-1, 5):
        with pytest.raises(InputError, match="expected an offset from 0 to 4 in 5 frames"):
            past_frame(video, offset)


@torch.no_grad()
def test_a_stream_is_answered_as_the_clip_is(memoriser):
    video = torch.rand(2, 5, 3, 32, 32)
    state, answers = memoriser.init_state(2, image_size=(32, 32)), []
    for frame in video.split(1, dim=1):
        answer, state = memoriser.step(frame, state)
        answers.append(answer)
    for length in (1, 3, 5):
        torch.testing.assert_close(answers[length - 1], memoriser(video[:, :length]), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(answers[3], answers[4], atol=1e-3)


@torch.no_grad()
def test_the_answer_is_read_off_the_tokens_patch_by_patch(memoriser):
    """A reader that outputs each patch's index in all its pixels puts it at the patch's place."""
    video = torch.rand(1, 2, 3, 32, 32)
    tokens = memoriser.tokenizer(video)
    state = memoriser.init_state(1, image_size=(32, 32))
    last = memoriser.norm(memoriser._through_blocks(tokens, state.layers, state.frames_seen == 0)[0])[0, -1]
    patches = memoriser.reader(last) * 0.25 + 0.5  # [16, 3 * 8 * 8]
    answer = memoriser(video)[0]
    for number in range(16):
        row, column = divmod(number, 4)
        patch = answer[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        torch.testing.assert_close(patch.flatten(), patches[number], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_class_token_is_not_a_patch():
    fields = {**{key: value for key, value in MODEL.items() if key != "preset"}, "pooling": "cls"}
    model = Memoriser(MemoriserConfig(blocks=model_config("tiny", **fields), offset=0))
    assert model(torch.rand(2, 3, 3, 32, 32)).shape == (2, 3, 32, 32)


@pytest.mark.slow
@torch.no_grad()
def test_vivit_sees_all_frames_and_puts_each_patch_in_its_place(vivit):
    video = torch.rand(1, 4, 3, 32, 32)
    answer = vivit(video)
    assert answer.shape == (1, 3, 32, 32)
    for frame in range(4):  # whichever changes, the answer does
        other = video.clone()
        other[:, frame] = 1 - other[:, frame]
        assert (vivit(other) - answer).abs().max() > 1e-4
    reader = vivit.reader.weight.clone(), vivit.reader.bias.clone()
    vivit.reader.weight.zero_()
    vivit.reader.bias.copy_(torch.arange(192.0))  # colour by colour, row by row
    colour, y, x = 1, 3, 5
    expected = 0.5 + 0.25 * (64 * colour + 8 * y + x)
    assert torch.allclose(vivit(video)[0, colour, y::8, x::8], torch.tensor(expected))
    vivit.reader.weight.copy_(reader[0])
    vivit.reader.bias.copy_(reader[1])


@torch.no_grad()
def test_vivit_agrees_with_transformers_own_pass(vivit):
    video = torch.rand(2, 4, 3, 32, 32)
    tokens = vivit.vivit(2 * video - 1).last_hidden_state[:, 1:].unflatten(1, (4, 4, 4)).mean(dim=1)
    patches = vivit.reader(tokens.movedim(3, 1)).flatten(2).transpose(1, 2) * 0.25 + 0.5
    answer = vivit(video)
    for number in range(16):
        row, column = divmod(number, 4)
        patch = answer[:, :, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].flatten(1)
        torch.testing.assert_close(patch, patches[:, number], rtol=1e-4, atol=1e-5)


def test_positions_of_longer_videos_are_the_nearest_in_time(vivit):
    stored = vivit.vivit.embeddings.position_embeddings
    by_frame = stored[:, 1:].unflatten(1, (4, 16))
    for num_frames, nearest in ((4, [0, 1, 2, 3]), (6, [0, 0, 1, 2, 2, 3]), (8, [0, 0, 1, 1, 2, 2, 3, 3])):
        resized = vivit.positions(num_frames)
        assert torch.equal(resized[:, :1], stored[:, :1])
        assert torch.equal(resized[:, 1:].unflatten(1, (num_frames, 16)), by_frame[:, nearest])
    assert vivit(torch.rand(1, 6, 3, 32, 32)).shape == (1, 3, 32, 32)


def test_both_are_saved_whole(memoriser, vivit, tmp_path):
    video = torch.rand(1, 4, 3, 32, 32)
    for model in (memoriser, vivit):
        folder = model.save(tmp_path / type(model).__name__)
        again = type(model).load(folder)
        assert again.config == model.config
        assert torch.equal(again(video), model(video))
    with pytest.raises(CheckpointError, match="expected architecture 'Memoriser', got 'VivitMemoriser'"):
        Memoriser.load(tmp_path / "VivitMemoriser")


def test_impossible_models_are_refused(memoriser, vivit):
    blocks = memoriser.config.blocks
    for wrong in ({"num_classes": 5}, {"temporal_patch_size": 2}, {"temporal_mixer": "attention"}):
        with pytest.raises(ConfigError, match="blocks: expected"):
            MemoriserConfig(blocks=blocks.replace(**wrong), offset=1)
    with pytest.raises(ConfigError, match="offset: expected a whole number >= 0"):
        MemoriserConfig(blocks=blocks, offset=-1)
    with pytest.raises(ConfigError, match="image_size: expected a multiple of patch_size=8"):
        VivitMemoriserConfig.from_dict({**vivit.config.to_dict(), "image_size": [36, 32]})
    with pytest.raises(InputError, match="of 32x32"):
        vivit(torch.rand(1, 4, 3, 40, 32))
    with pytest.raises(ConfigError, match="expected 'nothing' for VivitMemoriser"):
        vivit.recompute = "cheap"


# ---- scenery -------------------------------------------------------------------------------------------------------


def test_scenery_is_the_same_every_time_and_leaves_nothing_in_sight():
    scenery = Scenery(SceneryConfig(image_size=(32, 32)), seed=3)
    clip = scenery.clip(5, 40)
    cuts = torch.tensor([cut for _, cut in islice(scenery.frames(5), 40)])
    again = Scenery(SceneryConfig(image_size=(32, 32)), seed=3).clip(5, 24)
    assert torch.equal(clip[:24], again)
    assert clip.shape == (40, 3, 32, 32)
    assert clip.dtype == torch.uint8
    starts = cuts.nonzero()[:, 0].tolist()
    assert not cuts[0]
    assert starts[0] <= 16
    assert all(6 <= length <= 16 for length in np.diff(starts))
    clips = torch.stack([scenery.clip(number, 16) for number in range(12)]).float() / 255
    step, far = ((clips[:, apart:] - clips[:, :-apart]).square().mean() for apart in (1, 12))
    assert far > 2 * step > 0.002
    # No nearer to the frame that was 12 before than to one of another video.
    strange = (clips[1:, -1] - clips[:-1, 0]).square().mean()
    assert far == pytest.approx(float(strange), rel=0.5)
    other = Scenery(SceneryConfig(image_size=(32, 32)), seed=4).clip(5, 24)
    assert (other != again).float().mean() > 0.9


def test_impossible_scenery_is_refused():
    for wrong in ({"min_shot_frames": 1}, {"min_shot_frames": 9, "max_shot_frames": 8}):
        with pytest.raises(ConfigError, match="max_shot_frames: expected 2 up to 1000"):
            SceneryConfig(**wrong)
    with pytest.raises(ConfigError, match="min_pan and max_pan"):
        SceneryConfig(min_pan=0.5, max_pan=0.2)
    with pytest.raises(ConfigError, match="seed must be 0 or more"):
        Scenery(SceneryConfig(), seed=-1)
    with pytest.raises(InputError, match="video must be 0 or more"):
        Scenery(SceneryConfig(), seed=0).clip(-1, 3)


# ---- training ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), (AS_VIVIT,)], ids=["trecvit", "vivit"])
def test_a_run_leaves_model_figures_and_pictures(recipe_path, tmp_path, words):
    tested = ("memory.validate_every=2", *words)
    whole = train(load_recipe(recipe_path, tested), tmp_path / "whole")
    assert isinstance(whole, VivitMemoriser if words else Memoriser)
    found = json.loads((tmp_path / "whole/evaluation/result.json").read_text())
    assert found["clips"] == 3
    assert found["explained"] == outcome(tmp_path / "whole")["explained"]
    assert found["psnr_db"] == read_lines(tmp_path / "whole/validation.jsonl")[-1]["psnr_db"]
    assert {"best", "curves.png", "model", "pictures"} <= {path.name for path in (tmp_path / "whole").iterdir()}
    assert (tmp_path / "whole/evaluation/returned.png").stat().st_size > 1000


def test_the_loss_is_the_frames_mean_squared_error(recipe_path):
    recipe = load_recipe(recipe_path)
    batch = next(iter(recipe.feed().batches(0, Share())))
    objective = recipe.objective()
    true = batch.videos[:, 1].float() / 255  # frame 4 - 2, from 1
    out = torch.rand_like(true)
    total, shares = objective.loss(out, batch)
    assert float(total) == pytest.approx(float((out - true).square().mean(dim=(1, 2, 3)).sum()), rel=1e-5)
    right, whole = shares[0].tolist()
    assert right / whole == pytest.approx(
        1 - float((out - true).square().sum() / (true - 0.5).square().sum()), rel=1e-4
    )
    blank = objective.blank(recipe.preprocessing, torch.device("cpu"))
    empty, nothing = objective.loss(torch.rand(1, 3, 32, 32, requires_grad=True), blank)
    assert empty.item() == 0.0
    assert not nothing.any()


def test_every_weight_is_moved_once_and_vivits_as_ours_are(vivit):
    plan = Optimisation(num_steps=1, muon_learning_rate=0.02)
    adamw, muon = optimisers_of(vivit, plan)
    moved = [weight for one in (adamw, muon) for group in one.param_groups for weight in group["params"]]
    assert len(moved) == len({id(weight) for weight in moved}) == len(list(vivit.parameters()))
    # Queries, keys, values, their result, and the MLP's two.
    assert len(muon.param_groups[0]["params"]) == 6 * MODEL["depth"]
    kept = [id(weight) for group in adamw.param_groups if not group["weight_decay"] for weight in group["params"]]
    assert {id(vivit.vivit.embeddings.position_embeddings), id(vivit.vivit.embeddings.cls_token)} <= set(kept)


@pytest.mark.slow
def test_both_begin_with_patches_whitened_alike(recipe_path):
    """Tokens before positions, of the training clips: uncorrelated and of equal variance."""
    tokens = []
    for words in ((), (AS_VIVIT,)):
        recipe = load_recipe(recipe_path, ["start.whiten_grain_px=1", "start.positions_scale=0", *words])
        torch.manual_seed(0)
        feed = recipe.feed()
        model, _ = initial_model(recipe, feed)
        video = feed.examples().float() / 255
        if isinstance(model, VivitMemoriser):
            tokens.append(model.embedding(2 * video.transpose(1, 2) - 1).flatten(2).transpose(1, 2).flatten(0, 1))
        else:
            tokens.append(model.tokenizer(video).flatten(0, 2))
    for some in tokens:
        covariance = torch.cov(some.T)
        assert torch.allclose(covariance.diagonal(), torch.ones(16), atol=0.15)
        assert (covariance - covariance.diagonal().diag()).abs().max() < 0.1
        assert some.mean(dim=0).abs().max() < 0.01


@pytest.mark.slow
def test_a_memory_of_one_frame_is_learnt(recipe_path, tmp_path):
    """The frame before the last, much better than the mean frame, after some seconds."""
    words = ["memory.offset=1", "preprocessing.num_frames=2", "optimisation.num_steps=60", "model.width=64"]
    words += ["model.mlp_width=64", "model.depth=1", "optimisation.batch_size=8", "log_every=60"]
    words += ["optimisation.learning_rate=0.005", "optimisation.warmup_steps=5", "memory.validation_clips=16"]
    words += ["start.whiten_grain_px=1", "start.conv_scale=10"]
    train(load_recipe(recipe_path, words), tmp_path / "run")
    found = json.loads((tmp_path / "run/evaluation/result.json").read_text())
    assert found["psnr_db"] > found["constant_psnr_db"] + 3


@pytest.mark.slow
def test_few_long_videos_are_enough(recipe_path, tmp_path):
    rng, files = np.random.default_rng(0), tmp_path / "videos"
    files.mkdir()
    for number in range(2):
        with VideoWriter(files / f"{number}.mkv", 12) as writer:
            for _ in range(20):
                writer.write(rng.integers(0, 256, (40, 48, 3), np.uint8))
    held_out = tmp_path / "held_out"
    shutil.copytree(files, held_out)
    (held_out / "2.mkv").write_bytes(b"no video")
    content = {**SMALL, "videos": {"train": str(files), "validation": str(held_out), "clips_per_video": 6}}
    content["memory"] = {"offset": 2, "validation_clips": 3}
    content["optimisation"] = {"bf16": False, "epochs": 1, "batch_size": 4, "warmup_steps": 1}
    path = tmp_path / "videos.yaml"
    path.write_text(yaml.safe_dump(content))
    recipe = load_recipe(path)
    feed = recipe.feed()
    assert feed.num_steps == 3
    clips = torch.cat([batch.videos for batch in feed.batches(0, Share())])
    assert len({clip.numpy().tobytes() for clip in clips}) > 8  # cut elsewhere each time
    train(recipe, tmp_path / "run")
    found = json.loads((tmp_path / "run/evaluation/result.json").read_text())
    assert (found["clips"], found["failed"]) == (2, 1)
    tested_on = recipe.task.held_out(recipe)
    frames = [frame for frame, cuts in tested_on.streams(3) if not cuts.any()]
    assert len(frames) == 20
    assert frames[0].shape == (2, 3, 32, 32)  # of those that can be read
    assert not tested_on.has_cuts


def test_clips_go_to_where_the_model_is(recipe_path, tmp_path, monkeypatch):
    """On the meta device, in place of a GPU."""

    class Elsewhere(Memoriser):
        def forward(self, video):
            assert video.device.type == "meta"
            return torch.zeros(len(video), *video.shape[2:])

    objective = load_recipe(recipe_path).objective()
    monkeypatch.setattr("paper.memory_task.load_trained", lambda config, folder, device: Elsewhere(config).to(device))
    processes = Processes()
    monkeypatch.setattr(processes, "device", torch.device("meta"))
    objective.evaluate(tmp_path, tmp_path / "evaluation", processes)
    assert json.loads((tmp_path / "evaluation/result.json").read_text())["clips"] == 3


def test_recipes_that_do_not_fit_are_refused(recipe_path, tmp_path):
    refused = {
        "memory.offset=4": "memory.offset: expected 0 to 3 in clips of 4 frames",
        "memory.validation_seed=0": "expected a seed other than scenery_seed=0",
        "memory.ofset=4": "did you mean 'offset'",
        "memory.scenery=null": "expected `videos` or `memory.scenery`, one of them",
        "scenes={}": "expected `tracks`, `scenes` or `videos`, one of them, got scenes and memory",
        "memory.scenery.image_size=[48, 48]": "leave it out",
        "model.num_classes=4": "num_classes=0",
        "memory.scenery.max_pan=7": "min_pan and max_pan",
    }
    for word, words in refused.items():
        with pytest.raises(ConfigError, match=words):
            load_recipe(recipe_path, [word])
    with pytest.raises(ConfigError, match="a ViViT starts from random weights"):
        load_recipe(recipe_path, [AS_VIVIT, "start.weights=motions"])
    with pytest.raises(ConfigError, match="give num_steps, not epochs"):
        load_recipe(recipe_path, ["optimisation.num_steps=0", "optimisation.epochs=1"])


@pytest.mark.slow
def test_the_package_alone_names_the_command_of_the_papers_tasks(recipe_path, forks):
    code = f"""
from pathlib import Path
from trecvit.cli.evaluate import _videomae
from trecvit.errors import ConfigError
from trecvit.train.recipe import load_recipe
for load in (
    lambda: load_recipe({str(recipe_path)!r}),
    lambda: load_recipe("mae_world", ["mae.network=videomae"]),
    lambda: _videomae(Path(), 4, "cpu"),
):
    try:
        load()
    except ConfigError as error:
        print(error)
"""
    done = forks.run(code)
    commands = ["`scripts/paper train`", "`scripts/paper train`", "`scripts/paper probe --videomae FOLDER`"]
    lines = done.stdout.splitlines()
    assert [command for command, line in zip(commands, lines, strict=True) if command in line] == commands


@pytest.mark.parametrize("name", ["memory_world.yaml", "memory_walking_tours.yaml"])
def test_the_recipes_are_read_and_both_models_can_be_made(name):
    plan = Plan(path=ROOT / "paper" / "recipes" / name, overrides=(), runs=Path("runs"), seeds=(0,))
    for model, _, _ in plan.runs_for(plan.offsets()):
        recipe = plan.recipe(model, plan.lengths[1], 0)
        assert recipe.preprocessing.num_frames - recipe.task.memory.offset == plan.frame
        assert isinstance(recipe.architecture, {OURS: MemoriserConfig, VIVIT: VivitMemoriserConfig}[model])


# ---- figures -------------------------------------------------------------------------------------------------------


def test_figures_are_those_worked_out_by_hand():
    clips = [torch.full((3, 3, 4, 4), level, dtype=torch.uint8) for level in (51, 153)]
    clips[0][0], clips[1][0] = 102, 204  # frames of one colour: 0.4 and 0.8, later 0.2 and 0.6
    found = evaluate_memory(lambda video: torch.full((1, 3, 4, 4), 0.5), clips, 2)
    db = lambda errors: float(np.mean([-10 * np.log10(error**2) for error in errors]))  # noqa: E731
    assert found["psnr_db"] == pytest.approx(db([0.1, 0.3]), abs=1e-3)
    assert found["constant_psnr_db"] == pytest.approx(db([0.2, 0.2]), abs=1e-3)
    assert found["last_psnr_db"] == pytest.approx(db([0.2, 0.2]), abs=1e-3)
    assert found["explained"] == pytest.approx(0.0, abs=1e-4)
    assert evaluate_memory(lambda video: past_frame(video, 2), clips, 2)["explained"] == 1.0


def test_forgetting_in_streams_is_what_it_says(memoriser):
    """Against the model on the frames since the last reset."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (9, 2, 3, 32, 32), dtype=torch.uint8, generator=generator)
    cuts = torch.zeros(9, 2, dtype=torch.bool)
    cuts[5, 0] = cuts[3, 1] = True
    ways = [Forgetting(name="on"), Forgetting(name="anew", per_clip=0.0), Forgetting(name="cuts", at_cuts=True)]
    ways += [Forgetting(name="half", per_frame=0.5)]
    seen = []
    found = list(
        recall_in_streams(memoriser, zip(frames, cuts, strict=True), ways, [4, 7], num_frames=4, report=seen.append)
    )
    assert [(one.forgetting, one.frames) for one in found] == [(way.name, at) for at in (4, 7) for way in ways]
    true, video = frames[4].float() / 255, frames.movedim(0, 1)

    def psnr(answer: torch.Tensor, expected: torch.Tensor) -> float:
        return float((-10 * (answer.clamp(0, 1) - expected).square().mean(dim=(1, 2, 3)).log10()).mean())

    with torch.no_grad():
        whole = memoriser(video[:, :7])
        by_hand = {
            "on": whole,
            "anew": memoriser(video[:, 4:7]),
            "cuts": torch.cat([memoriser(video[:1, 5:7]), memoriser(video[1:, 3:7])]),
        }
        state = memoriser.init_state(2, image_size=(32, 32))
        for place in range(7):
            answer, state = memoriser.step(video[:, place : place + 1], state)
            layers = tuple(layer._replace(hidden=0.5 * layer.hidden) for layer in state.layers)
            state = state.replace(layers=layers)
        by_hand["half"] = answer
    for one in found[4:]:
        assert one.psnr_db == pytest.approx(psnr(by_hand[one.forgetting], true), abs=1e-3)
    # Frame 4 - 2 from the beginning is the one that was asked for in training.
    assert found[4].first_psnr_db == pytest.approx(psnr(whole, frames[1].float() / 255), abs=1e-3)
    assert found[0].psnr_db == found[0].first_psnr_db
    assert found[7].state_rms < found[4].state_rms
    assert {one.streams for one in found} == {2}
    assert seen == list(range(1, 8))


# ---- studies -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_study_memory_trains_what_is_missing_and_draws(recipe_path, tmp_path, monkeypatch):
    words = ["memory", str(recipe_path), "--runs", str(tmp_path / "runs"), "--to", str(tmp_path / "to")]
    words += ["--streams", "1", "--offset", "2", "--offset", "4", "optimisation.num_steps=1"]
    words += ["memory.validation_clips=2", "model.depth=1"]
    monkeypatch.setattr(memory, "MULTIPLES", (1.0, 1.5, 3.0))
    monkeypatch.setattr(memory, "_TIMED_UPDATES", 1)
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    content = json.loads((tmp_path / "to/result.json").read_text())
    assert {"study", "command", "date", "machine", "scale", "rows"} <= content.keys()
    parts = {
        part: [row for row in content["rows"] if row["part"] == part] for part in ("Figure 7", "Table 6", "beyond")
    }
    # Frame 2 of 4, and of 6 at 1.5 T.
    assert [(row["model"], row["offset"]) for row in parts["Figure 7"]] == [
        (model, offset) for offset in (2, 4) for model in (OURS, VIVIT)
    ]
    assert all(row["steps_per_s"] > 0 and row["num_frames"] == row["offset"] + 2 for row in parts["Figure 7"])
    assert [(row["trained_on"], row["tested_on"], row["paper_psnr_db"]) for row in parts["Table 6"]] == [
        (6, 6, 29.1), (6, 6, 32.2), (4, 6, 26.4), (4, 6, 15.1),
    ]  # fmt: skip
    # Both are tested on the same frames, so what needs no model is alike.
    assert len({row["constant_psnr_db"] for row in parts["Table 6"]}) == 1
    assert [(row["forgetting"], row["frames"]) for row in parts["beyond"]] == [
        (way.name, round(4 * multiple)) for multiple in (1, 1.5, 3) for way in FORGETTINGS
    ]
    on_the_page = (
        (tables.recalled_over_distance, 4),
        (tables.recalled, 4),
        (tables.recalled_beyond, len(FORGETTINGS) + 1),
    )
    for build, count in on_the_page:
        assert len(build(content).splitlines()) == 2 + count
    for name in ("figure7.png", "figure8.png", "figure9.png", "beyond.png"):
        assert (tmp_path / "to" / name).stat().st_size > 3_000
    assert memory.draw_curves(content, tmp_path) == [tmp_path / "figure7.png", tmp_path / "beyond.png"]
    assert (tmp_path / "beyond.png").read_bytes() == (tmp_path / "to/beyond.png").read_bytes()
    weights = list((tmp_path / "runs").rglob("model/model.safetensors"))
    before = [path.stat().st_mtime_ns for path in weights]
    assert len(weights) == 4
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    assert [path.stat().st_mtime_ns for path in weights] == before
    again = json.loads((tmp_path / "to/result.json").read_text())
    assert [row["psnr_db"] for row in again["rows"]] == [row["psnr_db"] for row in content["rows"]]
    with pytest.raises(CheckpointError, match="a run of another recipe"):
        CliRunner().invoke(app, [*words, "optimisation.learning_rate=0.5"], catch_exceptions=False)


def test_study_memory_refuses_a_recipe_without_memory(tmp_path):
    words = [
        "memory",
        str(ROOT / "paper/recipes/study_world.yaml"),
        "--runs",
        str(tmp_path),
        "--to",
        str(tmp_path),
    ]
    with pytest.raises(ConfigError, match="expected a recipe with `memory`"):
        CliRunner().invoke(app, words, catch_exceptions=False)


@pytest.mark.slow
def test_study_eigenvalues_counts_all_channels(recipe_path, tmp_path):
    words = ["eigenvalues", str(recipe_path), "--runs", str(tmp_path / "runs"), "--to", str(tmp_path / "to")]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    content = json.loads((tmp_path / "to/result.json").read_text())
    rows = {(row["min_radius"], row["moment"]): row for row in content["rows"]}
    assert set(rows) == {(low, moment) for low in (0.9, 0.6) for moment in ("start", "end")}
    for (low, moment), row in rows.items():
        assert sum(row["bin_counts"]) == row["count"] == 2 * 16
        assert sum(row["at_full_gate"]["bin_counts"]) == 2 * 16
        if moment == "start":
            assert low - 1e-4 < row["quantiles"]["0"] < row["quantiles"]["1"] < 0.999 + 1e-4
            assert row["below_min_radius"] == 0
        full = row["at_full_gate"]["quantiles"]["0"]
        assert full == pytest.approx(row["quantiles"]["0"] ** GATE_SHARPNESS, rel=1e-6)
    assert rows[0.6, "end"]["mean"] != rows[0.6, "start"]["mean"]
    assert (tmp_path / "to/eigenvalues.png").stat().st_size > 3_000


@pytest.mark.slow
def test_start_of_the_eigenvalues_is_that_of_the_run(recipe_path, tmp_path):
    """At a learning rate of 0 the weights do not change, so the counts before and after are the same."""
    from paper import eigenvalues

    plan = eigenvalues.Plan(path=recipe_path, overrides=("optimisation.learning_rate=0",), runs=tmp_path)
    start, end = eigenvalues.run(plan, 0.6, 3, processes=Processes(), report=lambda done, total: None)
    assert start["quantiles"] == end["quantiles"]
    with pytest.raises(CheckpointError, match="a run of another recipe"):
        eigenvalues.run(replace(plan, overrides=()), 0.6, 3, processes=Processes(), report=lambda done, total: None)
