"""Masked autoencoding: masks, the encoder's inputs and cost, targets, the decoder, and saving."""

from __future__ import annotations

import json

import pytest
import torch
from models import TINY, VARIANTS, random_video, relative_error
from torch.utils.flop_counter import FlopCounterMode

from trecvit.config import ModelConfig, model_config
from trecvit.errors import CheckpointError, ConfigError, InputError
from trecvit.model.mae import AutoencoderConfig, MaskedAutoencoder, decoder_config, hidden_patches, targets, tube_masks
from trecvit.model.state import empty_layers
from trecvit.model.trecvit import TRecViT, frames_of, patches_of
from trecvit.weights.load import load

SAME = 1e-5  # float32, relative to the largest value: matrix multiplications of other sizes add in other orders
SMALL_DECODER = {"width": 8, "depth": 2, "num_heads": 2, "mlp_width": 12}


def autoencoder(mask_ratio: float = 0.5, decoder: dict | None = None, **overrides) -> MaskedAutoencoder:
    """The same small model every time, without weights at their initial values."""
    blocks = ModelConfig(**{**TINY, "pooling": "mean", **overrides, "num_classes": 0})
    config = AutoencoderConfig(
        blocks=blocks, decoder=decoder_config(blocks, **(decoder or SMALL_DECODER)), mask_ratio=mask_ratio
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(7)
        model = MaskedAutoencoder(config)
        for name, parameter in model.named_parameters():
            scale = 0.5 if name.endswith("conv.weight") else 0.1
            parameter.add_(scale * torch.randn(parameter.shape))
    return model.eval()


def masks(num_clips: int, num_patches: int, ratio: float, seed: int = 0) -> torch.Tensor:
    return tube_masks(num_clips, num_patches, ratio, torch.Generator().manual_seed(seed))


def encoder_of(model: MaskedAutoencoder) -> TRecViT:
    encoder = TRecViT(model.config.blocks)
    encoder.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith("decoder.")})
    return encoder.eval()


@pytest.mark.parametrize(("num_patches", "ratio", "kept"), [(196, 0.9, 20), (64, 0.75, 16), (6, 0.0, 6), (6, 0.99, 1)])
def test_masks_are_random_seeded_and_of_the_ratio(num_patches, ratio, kept):
    visible = masks(200, num_patches, ratio)
    assert visible.shape == (200, kept)
    assert torch.equal(visible, masks(200, num_patches, ratio))
    hidden = hidden_patches(visible, num_patches)
    assert torch.equal(
        torch.cat([visible, hidden], dim=1).sort(dim=1).values, torch.arange(num_patches).expand(200, -1)
    )
    assert (visible.diff(dim=1) > 0).all()
    assert (hidden.diff(dim=1) > 0).all()
    if 0 < kept < num_patches:
        assert not torch.equal(visible, masks(200, num_patches, ratio, seed=1))
        # Every patch as often as any other: 200 draws, five deviations of a binomial.
        share = kept / num_patches
        counts = torch.bincount(visible.flatten(), minlength=num_patches)
        assert (counts - 200 * share).abs().max() < 5 * (200 * share * (1 - share)) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "no_head"])
def test_the_encoder_with_all_patches_visible_is_the_model(variant):
    model = autoencoder(**VARIANTS[variant])
    video, everything = random_video(2, 8), torch.arange(6).expand(2, -1)
    features = encoder_of(model)(video).features[:, :, -6:]
    assert relative_error(model.encode(video, everything), features) <= SAME
    order = torch.tensor([[3, 1, 5, 0, 2, 4], [0, 5, 4, 3, 2, 1]])
    shuffled = features.take_along_dim(order[:, None, :, None], dim=2)
    assert relative_error(model.encode(video, order), shuffled) <= SAME


@pytest.mark.parametrize("variant", ["plain", "no_conv_fixed_positions", "pairs_of_frames", "complex"])
def test_visible_tokens_are_encoded_independently_of_hidden_ones(variant):
    """Against a plain reference: embed all tokens, select each clip's visible ones, run the blocks clip by clip."""
    model, video = autoencoder(**VARIANTS[variant]), random_video(3, 8)
    visible = masks(3, 6, 0.5)
    got = model.encode(video, visible)
    for clip in range(3):
        tokens = model.tokenizer(video[clip : clip + 1] / 255.0)
        has_cls = tokens.shape[2] - 6
        tokens = tokens[:, :, [*range(has_cls), *(visible[clip] + has_cls).tolist()]]
        for block in model.blocks:
            (state,) = empty_layers(
                model.config.blocks.replace(depth=1), 1, tokens.shape[2], device=model.device, dtype=model.dtype
            )
            tokens, _ = block(tokens, state, torch.tensor([True]))
        expected = model.norm(tokens)[:, :, has_cls:]
        assert relative_error(got[clip : clip + 1], expected) <= SAME


def test_only_visible_tubes_are_used_and_every_weight_has_a_gradient():
    model, video, visible = autoencoder(), random_video(2, 4), masks(2, 6, 0.5)
    before = model(video, visible)
    others = model.with_patches(video, before.hidden, torch.rand(2, 4, 3, 192))
    seen = model.with_patches(video, visible, torch.rand(2, 4, 3, 192))
    assert torch.equal(model(others, visible).normalised, model(video / 255.0, visible).normalised)
    assert not torch.allclose(model(seen, visible).normalised, before.normalised, atol=1e-3)
    (before.normalised - targets(video, before.hidden, model.config).normalised).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_the_whole_is_causal():
    """The decoder too: the reconstruction of a frame does not depend on later frames."""
    model, video, visible = autoencoder(), random_video(1, 6), masks(1, 6, 0.5)
    late = torch.cat([video[:, :4], random_video(1, 2, seed=9)], dim=1)
    both = [model(clip, visible).normalised for clip in (video, late)]
    assert torch.equal(both[0][:, :4], both[1][:, :4])
    assert not torch.equal(both[0][:, 4:], both[1][:, 4:])


@pytest.mark.slow
def test_the_encoders_cost_falls_with_the_mask_ratio():
    """Counted by PyTorch, for the paper's base model: a tenth of the tubes costs a tenth, attention still less."""
    blocks = model_config("base", num_classes=0, pooling="mean")
    with torch.device("meta"):
        model = MaskedAutoencoder(AutoencoderConfig(blocks=blocks, decoder=decoder_config(blocks)))
        video = torch.empty(1, 2, 3, 224, 224)
        flop = {}
        for count in (196, 98, 20):
            with FlopCounterMode(display=False) as counter:
                model.encode(video, torch.zeros(1, count, dtype=torch.int64))
            flop[count] = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            TRecViT(blocks)(video)
    assert flop[196] == counter.get_total_flops() > 60e9
    assert flop[98] / flop[196] < 0.5
    assert 0.09 < flop[20] / flop[196] < 20 / 196


def test_targets_are_videomaes():
    """Against transformers' VideoMAEForPreTraining: for outputs of 0 its loss is the mean of squared targets."""
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    decoder = {f"decoder_{name}": value for name, value in size.items()}
    config = transformers.VideoMAEConfig(image_size=32, patch_size=8, num_frames=4, tubelet_size=2, **size, **decoder)
    theirs = transformers.VideoMAEForPreTraining(config)
    with torch.no_grad():
        theirs.decoder.head.weight.zero_()
        theirs.decoder.head.bias.zero_()
    video = random_video(2, 4, 32, 32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    blocks = ModelConfig(**{**TINY, "image_size": 32, "temporal_patch_size": 2, "num_classes": 0})
    visible = masks(2, 16, 0.75)
    is_hidden = torch.zeros(2, 2, 16, dtype=torch.bool)
    hidden = hidden_patches(visible, 16)
    is_hidden.scatter_(2, hidden[:, None].expand(-1, 2, -1), True)
    with torch.no_grad():
        loss = theirs((video / 255.0 - mean) / std, bool_masked_pos=is_hidden.flatten(1)).loss
    ours = targets(video, hidden, AutoencoderConfig(blocks=blocks, decoder=decoder_config(blocks)))
    assert float(ours.normalised.square().mean()) == pytest.approx(float(loss), rel=1e-5)
    pixels = patches_of(video / 255.0, blocks).take_along_dim(hidden[:, None, :, None], dim=2)
    torch.testing.assert_close(ours.normalised * ours.deviation + ours.mean, pixels)
    colours = ours.normalised.unflatten(3, (3, -1))
    torch.testing.assert_close(colours.mean(dim=4), torch.zeros(colours.shape[:4]), atol=1e-5, rtol=0)
    torch.testing.assert_close(colours.std(dim=4), torch.ones(colours.shape[:4]), atol=1e-4, rtol=0)


def test_a_patch_of_one_colour_has_zero_targets():
    blocks = ModelConfig(**{**TINY, "num_classes": 0})
    black = torch.full((1, 2, 3, 16, 24), 17, dtype=torch.uint8)
    config = AutoencoderConfig(blocks=blocks, decoder=decoder_config(blocks))
    assert targets(black, torch.arange(6)[None], config).normalised.abs().max() < 0.1


def test_targets_that_are_not_normalised_keep_the_colour_of_a_patch():
    blocks = ModelConfig(**{**TINY, "num_classes": 0})
    config = AutoencoderConfig(blocks=blocks, decoder=decoder_config(blocks), normalised_targets=False)
    video, hidden = random_video(2, 4, 16, 24), torch.tensor([[0, 4], [2, 5]])
    true = targets(video, hidden, config)
    pixels = patches_of(video / 255.0, blocks).take_along_dim(hidden[:, None, :, None], dim=2)
    torch.testing.assert_close(true.normalised, 4.0 * pixels - 2.0)
    torch.testing.assert_close(true.normalised * true.deviation + true.mean, pixels)


@pytest.mark.parametrize("extent", [1, 2])
def test_patches_and_frames_are_the_same_pixels(extent):
    config, video = ModelConfig(**{**TINY, "temporal_patch_size": extent}), random_video(2, 4) / 255.0
    patches = patches_of(video, config)
    assert patches.shape == (2, 4 // extent, 6, 192 * extent)
    assert torch.equal(frames_of(patches, config, (16, 24)), video)
    assert torch.equal(patches[1, 1, 4].view(3, extent, 8, 8)[:, 0], video[1, extent, :, 8:16, 8:16])


def test_visible_patches_are_kept_and_hidden_ones_get_their_true_mean_and_contrast():
    model, video, visible = autoencoder(), random_video(2, 4), masks(2, 6, 0.5)
    restored = model.restore(video, visible)
    assert restored.shape == (2, 4, 3, 16, 24)
    got, true = (patches_of(clip, model.config.blocks) for clip in (restored, video / 255.0))
    index = visible[:, None, :, None]
    torch.testing.assert_close(got.take_along_dim(index, dim=2), true.take_along_dim(index, dim=2))
    with torch.no_grad():
        model.decoder.out.weight.zero_()
        model.decoder.out.bias.zero_()
    flat = patches_of(model.restore(video, visible), model.config.blocks)
    hidden = hidden_patches(visible, 6)[:, None, :, None]
    means = true.take_along_dim(hidden, dim=2).unflatten(3, (3, -1)).mean(dim=4, keepdim=True)
    colours = flat.take_along_dim(hidden, dim=2).unflatten(3, (3, -1))
    torch.testing.assert_close(colours, means.expand_as(colours))


def test_a_saved_autoencoder_is_a_trecvit_with_a_decoder_beside_it(tmp_path):
    model = autoencoder()
    model.provenance = {"source": "a test"}
    model.save(tmp_path / "model")
    encoder, again = load(tmp_path / "model"), MaskedAutoencoder.load(tmp_path / "model")
    assert isinstance(encoder, TRecViT)
    assert (encoder.config, encoder.provenance) == (model.config.blocks, {"source": "a test"})
    assert encoder.head is None
    video, visible = random_video(2, 4), masks(2, 6, 0.5)
    assert relative_error(encoder(video).features, model.encode(video, torch.arange(6).expand(2, -1))) <= SAME
    assert again.config == model.config
    assert torch.equal(again(video, visible).normalised, model(video, visible).normalised)
    description = tmp_path / "model" / "decoder" / "config.json"
    said = json.loads(description.read_text())
    said["model"]["decoder"]["width"] = 12
    description.write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=r"55 of another shape or type: decoder"):
        MaskedAutoencoder.load(tmp_path / "model")
    description.unlink()
    with pytest.raises(CheckpointError, match=r"decoder.config\.json: no such file"):
        MaskedAutoencoder.load(tmp_path / "model")


def test_recomputing_gives_the_same_gradients():
    gradients = []
    for recompute in ("nothing", "cheap", "blocks"):
        model, video, visible = autoencoder(), random_video(2, 4), masks(2, 6, 0.5)
        model.recompute = recompute
        model(video, visible).normalised.square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name
        assert torch.equal(gradient, gradients[2][name]), name


def test_a_decoder_without_time_treats_frames_separately():
    model = autoencoder(decoder={**SMALL_DECODER, "temporal_mixer": "none"})
    assert not any("temporal" in name for name, _ in model.decoder.named_parameters())
    features, visible = torch.randn(1, 3, 3, 16), torch.tensor([[0, 2, 3]])
    hidden = hidden_patches(visible, 6)
    whole = model.decoder(features, visible, hidden, (2, 3))
    parts = [model.decoder(frame, visible, hidden, (2, 3)) for frame in features.split(1, dim=1)]
    torch.testing.assert_close(whole, torch.cat(parts, dim=1))


def test_the_base_models_decoder_is_of_videomaes_size():
    blocks = model_config("base", num_classes=0, pooling="mean")
    with torch.device("meta"):
        model = MaskedAutoencoder(AutoencoderConfig(blocks=blocks, decoder=decoder_config(blocks)))
    decoder = model.config.decoder
    assert (decoder.depth, decoder.width, decoder.num_heads, decoder.mlp_width) == (4, 384, 6, 1536)
    assert (
        sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in model.decoder.parameters()) == 108_321_024
    )


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"blocks": {"num_classes": 3}}, "num_classes=0"),
        ({"decoder": {"patch_size": 4}}, "patch_size=8"),
        ({"decoder": {"positions": "learned"}}, "positions='sincos2d'"),
        ({"mask_ratio": 1.0}, "a share of 0 up to but not 1"),
        ({"blocks": {"patch_size": 1}, "decoder": {"patch_size": 1}}, "no contrast"),
    ],
)
def test_impossible_autoencoders_are_refused(change, complaint):
    config = autoencoder().config
    parts = {part: getattr(config, part).replace(**change.pop(part, {})) for part in ("blocks", "decoder")}
    with pytest.raises(ConfigError, match=complaint):
        AutoencoderConfig(**{"mask_ratio": config.mask_ratio, **parts, **change})


def test_a_config_survives_json_and_refuses_unknown_fields():
    config = autoencoder(mask_ratio=0.75).config
    assert AutoencoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError, match="did you mean 'mask_ratio'"):
        AutoencoderConfig.from_dict({**config.to_dict(), "mask_rato": 0.5})
    with pytest.raises(ConfigError, match="decoder: expected the fields of a ModelConfig, got None"):
        AutoencoderConfig.from_dict({"blocks": config.blocks.to_dict()})


def test_clips_that_do_not_fill_temporal_patches_are_refused():
    model = autoencoder(temporal_patch_size=2)
    with pytest.raises(InputError, match="that temporal_patch_size=2 divides, got 3"):
        model(random_video(1, 3), masks(1, 6, 0.5))
    with pytest.raises(InputError, match="expected height and width that patch_size=8 divides"):
        model(random_video(1, 4, 12, 24), masks(1, 6, 0.5))
