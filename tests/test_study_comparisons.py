"""The paper's ablations and baselines as studies: plans, training, results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from models import random_video, tiny_model
from typer.testing import CliRunner

from paper.commands import app
from paper.comparison import Measured, Run, draw_bars, measure, runs_of, to_dict, train_all
from paper.plan import ABLATIONS, FROM_SCRATCH, OURS, Plan, Row, Variant, recipe_for
from paper.recurrence import draw_eigenvalues, draw_gates, look_at
from trecvit.bench.training import updates_in_turn
from trecvit.config import ModelConfig
from trecvit.errors import CheckpointError, ConfigError, DataError
from trecvit.model.trecvit import TRecViT
from trecvit.synthetic.render import render_data_set
from trecvit.synthetic.world import World, WorldConfig
from trecvit.train.recipe import load_recipe

SMALL = Path(__file__).parent.parent / "paper" / "recipes" / "study_world.yaml"
PAPERS = Path("something_something_v2")
VARIANTS = [
    pytest.param(plan, variant, id=f"{plan.name}-{variant.name}")
    for plan in (ABLATIONS, FROM_SCRATCH)
    for variant in plan.variants
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """Of two steps on a dozen clips."""
    root = tmp_path_factory.mktemp("study")
    world = World(WorldConfig(num_frames=4, image_size=(32, 32)), seed=0)
    render_data_set(world, root / "data", num_clips={"train": 8, "validation": 4}, suffix=".mp4")
    network = {"width": 16, "depth": 2, "num_heads": 2, "mlp_width": 16, "head_width": 8, "image_size": 32}
    content = {
        "model": {"preset": "tiny", **network, "patch_size": 16, "pooling": "mean", "num_classes": 18},
        "preprocessing": {"image_size": 32, "num_frames": 4, "frame_stride": 1},
        "videos": {
            "train": str(root / "data" / "train.json"),
            "validation": str(root / "data" / "validation.json"),
            "validate_every": 1,
            "eval_clips": 1,
            "eval_crops": 1,
        },
        "optimisation": {"bf16": False, "epochs": 9, "batch_size": 4, "warmup_steps": 1, "muon_learning_rate": 0.01},
        "num_workers": 0,
        "log_every": 1,
    }
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


# The rendered data set is too small to have a video of each class.
few_classes = pytest.mark.filterwarnings("ignore:.*classes have no video")


def study(*words: object) -> str:
    done = CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("plan", [ABLATIONS, FROM_SCRATCH], ids=lambda plan: plan.name)
def test_every_model_is_in_the_paper_and_trained_once(plan):
    names = [variant.name for variant in plan.variants]
    assert len(set(names)) == len(names)
    assert {row.variant for row in plan.rows} == set(names)
    recipes = [json.dumps(recipe_for(variant, SMALL).to_dict()) for variant in plan.variants]
    assert len(set(recipes)) == len(recipes)


@pytest.mark.slow
@pytest.mark.parametrize("path", [SMALL, PAPERS], ids=lambda path: path.stem)
@pytest.mark.parametrize(("plan", "variant"), VARIANTS)
def test_every_variant_is_a_model_at_both_scales(path, plan, variant):
    words = ["model.preset=small"] if path is PAPERS and plan is FROM_SCRATCH else []
    made = recipe_for(variant, path, words, seed=2)
    assert made.seed == 2
    assert made.start.vit == ("" if path is SMALL or plan is FROM_SCRATCH else "ViT-B_16.npz")
    with torch.device("meta"):
        model = TRecViT(made.blocks)
        parameters = sum(weight.numel() for weight in model.parameters())
        assert model.config.can_stream or len(model.tokenizer.time.positions) == made.preprocessing.num_frames
    if path is PAPERS and variant.name == OURS:
        assert parameters / 1e6 == pytest.approx({ABLATIONS: 111.22, FROM_SCRATCH: 29.34}[plan], abs=0.01)


def test_the_plan_overrides_the_user_and_the_user_the_file():
    made = recipe_for(
        Variant("wide", ("model.conv_width=8",), rate=0.5),
        PAPERS,
        ["model.conv_width=2", "model.min_radius=0.1", "optimisation.batch_size=16"],
        num_steps=7,
    )
    assert (made.blocks.conv_width, made.blocks.min_radius) == (8, 0.6)
    assert (made.optimisation.batch_size, made.optimisation.num_steps, made.optimisation.epochs) == (16, 7, 0)
    assert made.optimisation.learning_rate == pytest.approx(0.5 * load_recipe(PAPERS).optimisation.learning_rate)
    assert recipe_for(Variant("same"), PAPERS).optimisation == load_recipe(PAPERS).optimisation


def test_recipes_without_videos_to_test_on_are_refused():
    for name, words in (
        ("world", []),
        (SMALL, ["videos.validation=null", "videos.validate_every=0"]),
    ):
        with pytest.raises(ConfigError, match=r"videos.validation.*trecvit data render"):
            recipe_for(Variant(OURS), name, words)


def test_only_some_variants_and_their_lines():
    part = ABLATIONS.only(["lstm", OURS])
    assert [variant.name for variant in part.variants] == [OURS, "lstm"]
    assert [row.table for row in part.rows].count("Table 2") == 2
    with pytest.raises(ConfigError, match=r"--only: expected one of ours, .*, got 'no_gate', did you mean 'no_gates'"):
        ABLATIONS.only(["no_gate"])


@pytest.mark.slow
@few_classes
def test_a_study_trains_each_run_once_and_writes_its_results(recipe, tmp_path):
    folders = ["--runs", tmp_path / "runs", "--to", tmp_path / "to"]
    command = ["ablations", recipe, *folders, "--seeds", "0,1", "--steps", 2, "--device", "cpu"]
    command += ["--only", "ours", "--only", "no_gates"]
    study(*command)
    runs = sorted(folder.name for folder in (tmp_path / "runs").iterdir())
    assert runs == ["no_gates-seed0", "no_gates-seed1", "ours-seed0", "ours-seed1"]
    result = json.loads((tmp_path / "to" / "result.json").read_text())
    assert list(result)[:6] == ["study", "command", "date", "machine", "scale", "rows"]
    assert result["study"] == "ablations"
    assert result["scale"].endswith("4 frames of 32 x 32, 2 steps of 4 clips, 18 classes, seeds 0, 1")
    rows = {(row["table"], row["variant"]): row for row in result["rows"]}
    assert set(rows) == {("Table 1", "no_gates"), *((f"Table {n}", "ours") for n in (1, 2, 13, 14, 15))}
    row = rows["Table 1", "no_gates"]
    evaluated = [
        json.loads((tmp_path / "runs" / f"no_gates-seed{seed}" / "evaluation" / "result.json").read_text())["top1"]
        for seed in (0, 1)
    ]
    assert row["top1"] == pytest.approx(sum(evaluated) / 2)
    assert row["paper_top1"] == 66.0
    assert row["paper_top1_over_ours"] == pytest.approx(-0.7)
    assert row["steps_per_s"] > 0
    assert [point["step"] for point in row["curve"]] == [1, 2]
    assert [[block["block"] for block in seed["blocks"]] for seed in result["recurrence"]] == [[0, 1], [0, 1]]
    for name in ("ablations.png", "eigenvalues.png", "gates.png"):
        assert (tmp_path / "to" / name).stat().st_size > 5000

    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/model/model.safetensors")}
    halted = tmp_path / "runs" / "ours-seed1"
    (halted / "evaluation" / "result.json").unlink()
    output = study(*command)
    assert output.count("finished before") == 3
    again = [path for path, when in trained.items() if path.stat().st_mtime_ns != when]
    assert again == [halted / "model" / "model.safetensors"]
    assert json.loads((tmp_path / "to" / "result.json").read_text())["rows"][0]["top1"] == result["rows"][0]["top1"]

    with pytest.raises(CheckpointError, match="a run of another recipe"):
        train_all(runs_of(ABLATIONS.only([OURS]), recipe, tmp_path / "runs", num_steps=3))


@pytest.mark.slow
@few_classes
def test_models_of_the_flattened_video_are_trained_and_their_curves_drawn(recipe, tmp_path):
    study("from-scratch", recipe, "--runs", tmp_path / "runs", "--to", tmp_path, "--seeds", "3", "--steps", 2,
          "--device", "cpu")  # fmt: skip
    result = json.loads((tmp_path / "result.json").read_text())
    assert [row["variant"] for row in result["rows"]] == [variant.name for variant in FROM_SCRATCH.variants]
    for row in result["rows"]:
        assert [point["step"] for point in row["curve"]] == [1, 2]
        assert row["top1_deviation"] is None
        assert row["parameters"] == sum(
            weight.numel() for weight in TRecViT.load(tmp_path / "runs" / f"{row['variant']}-seed3/model").parameters()
        )
    assert (tmp_path / "from_scratch.png").stat().st_size > 5000
    with pytest.raises(ConfigError, match="validate_every: expected more than 0, as curves need validation"):
        study("from-scratch", recipe, "videos.validate_every=0", "--runs", tmp_path / "none", "--to", tmp_path)
    with pytest.raises(ConfigError, match="--seeds: expected integers"):
        study("from-scratch", recipe, "--runs", tmp_path / "none", "--to", tmp_path, "--seeds", "0;1")
    assert not (tmp_path / "none").exists()


def test_means_deviations_and_differences_equal_those_by_hand(tmp_path):
    plan = Plan("made up", (Variant(OURS), Variant("other")), (Row("T", "a", OURS, 60.0), Row("T", "b", "other", 50.0)))
    of = {
        OURS: Measured(name=OURS, parameters=10, top1={0: 0.5, 1: 0.7}, curves={0: [(5, 0.2)], 1: [(5, 0.4)]},
                       steps_per_s=[2.0, 4.0]),
        "other": Measured(name="other", parameters=20, top1={0: 0.4, 1: 0.4}, curves={0: [], 1: []}, steps_per_s=[1.0]),
    }  # fmt: skip
    runs = [Run(variant, 0, recipe_for(variant, SMALL), tmp_path) for variant in plan.variants]
    ours, other = to_dict(plan, runs, list(of.values()), [], "scripts/paper")["rows"]
    assert (ours["top1"], ours["top1_deviation"]) == (pytest.approx(0.6), pytest.approx(0.02**0.5))
    assert ours["curve"] == [{"step": 5, "top1": pytest.approx(0.3), "top1_deviation": pytest.approx(0.02**0.5)}]
    assert (ours["top1_over_ours"], ours["steps_per_s"]) == (None, 3.0)
    assert other["top1_over_ours"] == {"mean": pytest.approx(-0.2), "deviation": pytest.approx(0.02**0.5)}
    assert other["paper_top1_over_ours"] == -10.0
    assert other["steps_per_s_deviation"] is None
    draw_bars([ours, other], tmp_path / "bars.png")
    assert (tmp_path / "bars.png").stat().st_size > 5000


def test_an_unfinished_study_has_no_result(recipe, tmp_path):
    with pytest.raises(DataError, match="ours-seed0: expected a finished run"):
        measure(runs_of(ABLATIONS.only([OURS]), recipe, tmp_path, seeds=[0]))


def test_updates_are_timed_in_turn(recipe, monkeypatch):
    order = []
    loops = {}

    def note(loop, batch, step):
        order.append((loops.setdefault(id(loop), len(loops)), step))

    monkeypatch.setattr("trecvit.bench.training.Loop.update", note)
    recipes = {name: recipe_for(Variant(name), recipe, num_steps=9) for name in ("one", "other")}
    rounds = []
    timed = updates_in_turn(recipes, num_rounds=2, report=rounds.append)
    assert order == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert rounds == [1, 2, 3]
    assert {name: len(speeds) for name, speeds in timed.items()} == {"one": 2, "other": 2}


@pytest.mark.slow
def test_gates_and_eigenvalues_are_those_of_the_model(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        for number, block in enumerate(model.blocks):
            lru = block.temporal.lru
            for gate in (lru.input_gate, lru.a_gate):
                gate.weight.zero_()
            # Half of the channels open, half closed.
            lru.input_gate.bias.copy_(torch.tensor([[50.0], [-50.0]]).expand(2, 8))
            lru.a_gate.bias.fill_(float(number))
    measured = look_at(model, [random_video(1, 3)[0], random_video(1, 5)[0]])
    assert [block.block for block in measured] == [0, 1]
    for number, block in enumerate(measured):
        torch.testing.assert_close(block.radii, torch.sigmoid(-model.blocks[number].temporal.lru.a_param.detach()))
        assert block.input_gate == (pytest.approx(0.5), pytest.approx(0.5))
        mean, deviation = block.recurrence_gate
        assert mean == pytest.approx(float(torch.sigmoid(torch.tensor(float(number)))), rel=1e-5)
        assert deviation < 1e-3
        quantiles = block.to_dict()["eigenvalue_quantiles"]
        assert (quantiles["0"], quantiles["1"]) == (
            pytest.approx(float(block.radii.min())),
            pytest.approx(float(block.radii.max())),
        )
    assert not any(module._forward_hooks for module in model.modules())
    draw_eigenvalues([measured, measured], model.config, tmp_path / "radii.png")
    draw_gates([measured, measured], tmp_path / "gates.png")
    assert all(path.stat().st_size > 5000 for path in tmp_path.glob("*.png"))


def test_a_model_without_gates_is_refused():
    for fields in ({"lru_gates": False}, {"temporal_mixer": "lstm"}):
        with pytest.raises(ConfigError, match="a model with gates"):
            look_at(tiny_model(**fields), [random_video(1, 2)[0]])
    assert isinstance(tiny_model().config, ModelConfig)
