"""The paper's tables and figures (arXiv:2412.14294, version 2): what each says, and where its answer is here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A table or figure of the paper.

    Attributes:
        name: In the paper.
        says: What it says, in short; figures are top-1 in percent if nothing else is said.
        anchor: Where on the results page, or in which document, it is dealt with.
        here: What there is here other than measurements, or why nothing can be measured.
        studies: Which of the report's studies measure it.
    """

    name: str
    says: str
    anchor: str
    here: str = ""
    studies: tuple[str, ...] = ()


_NO_DATA = "accuracy cannot be measured here: the data set is not at hand"
ITEMS = (
    Item(
        name="Table 1",
        says="parts of the recurrent block, SSv2: ours 66.7, Griffin's range 66.2, no skip 15.5, no gates "
        "66.0, no convolution 64.9",
        anchor="#table-1-parts-of-the-recurrent-block",
        studies=("ablations",),
    ),
    Item(
        name="Table 2",
        says="temporal parts, SSv2 and training steps/s: LRU 66.7 at 8.9, attention 62.4 at 8.3, LSTM 63.7 at "
        "6.0, Conv1D 40.3 at 10.5",
        anchor="#table-2-other-temporal-parts",
        studies=("ablations",),
    ),
    Item(
        name="Table 3",
        says="SSv2: TRecViT 66.8 with 32 frames, 68.2 with 64; ViViT-L 65.9; parameters, operations and memory",
        anchor="#table-3-something-something-v2-and-costs",
        here=f"{_NO_DATA}; recipe `recipes/something_something_v2.yaml`",
        studies=("costs",),
    ),
    Item(
        name="Table 4",
        says="Kinetics-400: TRecViT 76.5, ViViT-B 78.1, ViViT-L 78.7, causal ViViT-L 76.3",
        anchor="#table-4-kinetics-400",
        here=f"[{_NO_DATA}](#table-4-kinetics-400); recipe `recipes/kinetics400.yaml`",
    ),
    Item(
        name="Table 5",
        says="frozen features, attention readout: TRecViT 46.0 (K400) and 53.9 (SSv2), VideoMAE-L 45.8 and 53.7",
        anchor="#table-5-frozen-features",
        studies=("frozen",),
    ),
    Item(
        name="Table 6",
        says="a past frame recalled, PSNR: trained and tested on 96 frames ViViT-L 32.2, TRecViT 29.1; trained"
        " on 64, tested on 96 15.1 and 26.4",
        anchor="#table-6-long-video-memorisation",
        studies=("memory",),
    ),
    Item(
        name="Table 7",
        says="tracking by a readout, average Jaccard: DAVIS 0.706 (VideoMAE 0.703, MooG 0.687), Perception "
        "Test 0.783 (0.761, 0.760)",
        anchor="#table-7-point-tracking",
        here="DAVIS and Perception Test cannot be measured here: the data sets are not at hand",
        studies=("points", "frozen"),
    ),
    Item(
        name="Table 8",
        says="sizes S, B and L",
        anchor="model.md#numbers",
        here="configurations: presets `small`, `base` and `large`, [parameters counted](model.md#numbers)",
    ),
    Item(
        name="Table 9",
        says="settings of supervised training",
        anchor="#table-9-supervised-training",
        here="recipes `recipes/kinetics400.yaml`, `recipes/something_something_v2.yaml`: never run, no data, no GPU",
        studies=("classifier",),
    ),
    Item(
        name="Table 10",
        says="settings of masked autoencoding",
        anchor="#table-10-masked-autoencoding",
        here="[recipe](#table-10-masked-autoencoding) `recipes/mae_k400.yaml`: never run, no data, no GPU",
        studies=("autoencoder",),
    ),
    Item(
        name="Table 11",
        says="settings of readouts on frozen features",
        anchor="#table-11-readouts-on-frozen-features",
        here="[defaults](#table-11-readouts-on-frozen-features) of `trecvit probe`",
        studies=("frozen",),
    ),
    Item(
        name="Table 12",
        says="settings of tracking: 8 and 16 frames, 200,000 and 40,000 steps",
        anchor="#table-12-the-readout-that-tracks",
        here="[recipe](#table-12-the-readout-that-tracks) `recipes/track_readout_world.yaml`: MOVi-E is not at hand",
        studies=("frozen",),
    ),
    Item(
        name="Table 13",
        says="frames per patch, SSv2: 1: 66.8, 2: 64.5, 4: 61.5, 8: 57.7",
        anchor="#table-13-frames-per-patch",
        studies=("ablations",),
    ),
    Item(
        name="Table 14",
        says="taps of the convolution, SSv2: 2: 66.4, 4: 66.8, 8: 65.7",
        anchor="#table-14-width-of-the-convolution",
        studies=("ablations",),
    ),
    Item(
        name="Table 15",
        says="least eigenvalue at the start, SSv2: 0.6: 66.8, 0.7: 66.6, 0.8: 66.5, 0.9: 66.2",
        anchor="#table-15-least-eigenvalue-at-the-start",
        studies=("ablations",),
    ),
    Item(
        name="Figure 1",
        says="the architecture",
        anchor="model.md",
        here="nothing to measure: [equation by equation](model.md); equal to the original code on fixtures "
        "(`tests/test_official.py`)",
    ),
    Item(
        name="Figure 2",
        says="eigenvalues before and after training on memorisation: from [0.9, 0.999] they are pushed towards"
        " the least",
        anchor="#figure-2-eigenvalues",
        studies=("eigenvalues",),
    ),
    Item(
        name="Figure 3",
        says="memory and operations over length: ViViT-L about 12 × and 5 × ours at 32 frames, 24 × and 8 × at 64",
        anchor="#figure-3-memory-and-operations",
        studies=("costs",),
    ),
    Item(
        name="Figure 4",
        says="small models from scratch on SSv2: TRecViT above ViViT, PureLRU very poor; curves without "
        "printed figures",
        anchor="#figure-4-from-scratch",
        studies=("from scratch",),
    ),
    Item(
        name="Figure 5",
        says="Figure 3 with LSTM and Conv1D in the recurrence's place",
        anchor="#figure-5-other-temporal-parts",
        studies=("costs",),
    ),
    Item(
        name="Figure 6",
        says="tracked points, zoomed crops over time",
        anchor="tracking.md#how-well",
        here="DAVIS and Perception Test are not at hand; drawn by `trecvit eval tapvid --pictures`, "
        "[tracking](tracking.md#how-well)",
    ),
    Item(
        name="Figure 7",
        says="PSNR and steps/s over how far back the frame is; ViViT-L without memory beyond 80 frames, TRecViT to 144",
        anchor="#figure-7-memorisation-over-distance",
        studies=("memory",),
    ),
    Item(
        name="Figure 8",
        says="recalled frames: pictures",
        anchor="#figures-8-and-9-recalled-frames",
        studies=("memory",),
    ),
    Item(
        name="Figure 9",
        says="recalled frames: pictures",
        anchor="#figures-8-and-9-recalled-frames",
        studies=("memory",),
    ),
    Item(
        name="Section 1",
        says="about 300 frames/s in point tracking; on what, it does not say",
        anchor="#section-1-frames-per-second",
        here="no GPU was at hand",
        studies=("speed",),
    ),
)
