"""A classifier in streams longer than its training clips."""

from __future__ import annotations

import json

import pytest
import torch
from models import tiny_model
from typer.testing import CliRunner

from paper import tables
from paper.commands import app
from paper.endless import OF_ALL_FRAMES, accuracies, world_streams
from paper.forgetting import Forgetting
from trecvit.errors import ConfigError

ON, ANEW, LESS = Forgetting(name="on"), Forgetting(name="anew", per_clip=0.0), Forgetting(name="less", per_frame=0.5)


def test_each_way_is_scored_by_the_content_of_its_state():
    model = tiny_model()
    size = model.config.image_size
    clips = [torch.randint(0, 256, (3, 4, 3, *size), dtype=torch.uint8) for _ in range(3)]

    def predicted(videos):
        """Classify each clip alone."""
        return model(videos).logits.argmax(dim=-1)

    # The classes are the model's predictions for each clip alone, so that a reset state is always right.
    pairs = [(videos, predicted(videos)) for videos in clips]
    seen = []
    rows = list(accuracies(model, pairs, [ON, ANEW, LESS], ends=[1, 3], report=seen.append))
    assert seen == [1, 2, 3]
    assert [(row.forgetting, row.first_clip, row.last_clip, row.clips) for row in rows] == [
        (name, first, last, 3 * (last - first + 1))
        for first, last in ((1, 1), (2, 3))
        for name in ("on", "anew", "less", OF_ALL_FRAMES)
    ]
    by_way = {(row.forgetting, row.last_clip): row for row in rows}
    assert by_way["anew", 1].top1 == by_way["anew", 3].top1 == by_way["on", 1].top1 == 1.0
    assert by_way["less", 3].state_rms < by_way["on", 3].state_rms
    # The last output of `step` is the model's prediction for all clips as one video.
    whole = model(torch.cat(clips, dim=1)).logits.argmax(dim=-1)
    right = [(model(torch.cat(clips[:2], dim=1)).logits.argmax(dim=-1) == pairs[1][1]), whole == pairs[2][1]]
    assert by_way[OF_ALL_FRAMES, 3].top1 == pytest.approx(float(torch.cat(right).double().mean()))


def test_a_carried_state_differs_from_a_reset_one():
    model = tiny_model()
    videos = [torch.randint(0, 256, (4, 4, 3, *model.config.image_size), dtype=torch.uint8) for _ in range(2)]
    rows = list(
        accuracies(model, [(clips, torch.zeros(4, dtype=torch.long)) for clips in videos], [ON, ANEW], ends=[2])
    )
    assert rows[0].state_rms != rows[1].state_rms


@pytest.mark.slow
def test_the_command_writes_the_result_and_its_table(tmp_path):
    words = ["endless", "--streams", "2", "--clips", "2", "--to", str(tmp_path)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0
    content = json.loads((tmp_path / "result.json").read_text())
    assert {"study", "command", "date", "machine", "scale", "rows"} <= content.keys()
    assert [row["last_clip"] for row in content["rows"] if row["forgetting"] == "carried on"] == [1, 2]
    assert (tmp_path / "endless.png").stat().st_size > 5000
    lines = tables.named_beyond(content).splitlines()
    assert lines[0] == "| states are | clips 1 to 1 | clips 2 to 2 | final states, rms |"
    assert len(lines) == 2 + len({row["forgetting"] for row in content["rows"]})


def test_a_model_of_other_classes_is_refused():
    with pytest.raises(ConfigError, match="world's 18 classes"):
        next(world_streams(tiny_model(), 1, 1))
