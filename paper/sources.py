"""The paper's tables and figures (arXiv:2412.14294, version 2), their statements, and where they are reproduced."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Item:
    """A table or figure of the paper.

    Attributes:
        name: Its name in the paper.
        anchor: Its section on the results page, or in another document.
        studies: The studies that measure it.
        content: Its content in short; figures are top-1 in percent by default.
        here: Notes beside the measurements, or the reason why there are none.
    """

    name: str
    anchor: str
    studies: tuple[str, ...]
    content: str
    here: str = ""


_NO_DATA = "accuracy cannot be measured here: the data set is not at hand"
# fmt: off
ITEMS = (
    Item("Table 1", "#table-1-parts-of-the-recurrent-block", ("ablations",),
         "parts of the recurrent block, SSv2: ours 66.7, Griffin's range 66.2, no skip 15.5, no gates 66.0, no "
         "convolution 64.9"),
    Item("Table 2", "#table-2-other-temporal-parts", ("ablations",),
         "temporal parts, SSv2 and training steps/s: LRU 66.7 at 8.9, attention 62.4 at 8.3, LSTM 63.7 at 6.0, "
         "Conv1D 40.3 at 10.5"),
    Item("Table 3", "#table-3-something-something-v2-and-costs", ("costs",),
         "SSv2: TRecViT 66.8 with 32 frames, 68.2 with 64; ViViT-L 65.9; parameters, operations and memory",
         f"{_NO_DATA}; recipe `something_something_v2`"),
    Item("Table 4", "#table-4-kinetics-400", (),
         "Kinetics-400: TRecViT 76.5, ViViT-B 78.1, ViViT-L 78.7, causal ViViT-L 76.3",
         f"[{_NO_DATA}](#table-4-kinetics-400); recipe `kinetics400`"),
    Item("Table 5", "#table-5-frozen-features", ("frozen",),
         "frozen features, attention readout: TRecViT 46.0 (K400) and 53.9 (SSv2), VideoMAE-L 45.8 and 53.7"),
    Item("Table 6", "#table-6-long-video-memorisation", ("memory",),
         "a past frame recalled, PSNR in dB: trained and tested on 96 frames ViViT-L 32.2, TRecViT 29.1; trained on "
         "64, tested on 96, 15.1 and 26.4"),
    Item("Table 7", "#table-7-point-tracking", ("points", "frozen"),
         "tracking by a readout, average Jaccard: DAVIS 0.706 (VideoMAE 0.703, MooG 0.687), Perception Test 0.783 "
         "(0.761, 0.760)",
         "DAVIS and Perception Test cannot be measured here: the data sets are not at hand"),
    Item("Table 8", "model.md#numbers", (),
         "sizes S, B and L",
         "configurations: presets `small`, `base` and `large`, [parameters counted](model.md#numbers)"),
    Item("Table 9", "#table-9-supervised-training", ("classifier",),
         "settings of supervised training",
         "recipes `kinetics400`, `something_something_v2`: never run, no data, no GPU"),
    Item("Table 10", "#table-10-masked-autoencoding", ("autoencoder",),
         "settings of masked autoencoding",
         "[recipe](#table-10-masked-autoencoding) `mae_k400`: never run, no data, no GPU"),
    Item("Table 11", "#table-11-readouts-on-frozen-features", ("frozen",),
         "settings of readouts on frozen features",
         "[defaults](#table-11-readouts-on-frozen-features) of `trecvit probe`"),
    Item("Table 12", "#table-12-the-readout-that-tracks", ("frozen",),
         "settings of tracking: 8 and 16 frames, 200,000 and 40,000 steps",
         "[recipe](#table-12-the-readout-that-tracks) `track_readout_world`: MOVi-E is not at hand"),
    Item("Table 13", "#table-13-frames-per-patch", ("ablations",),
         "frames per patch, SSv2: 1: 66.8, 2: 64.5, 4: 61.5, 8: 57.7"),
    Item("Table 14", "#table-14-width-of-the-convolution", ("ablations",),
         "taps of the convolution, SSv2: 2: 66.4, 4: 66.8, 8: 65.7"),
    Item("Table 15", "#table-15-least-eigenvalue-at-the-start", ("ablations",),
         "least eigenvalue at the start, SSv2: 0.6: 66.8, 0.7: 66.6, 0.8: 66.5, 0.9: 66.2"),
    Item("Figure 1", "model.md", (),
         "the architecture",
         "not a measurement: [equation by equation](model.md); equal to the original code on fixtures "
         "(`tests/test_official.py`)"),
    Item("Figure 2", "#figure-2-eigenvalues", ("eigenvalues",),
         "eigenvalues before and after training on memorisation: from [0.9, 0.999] they are pushed towards the least"),
    Item("Figure 3", "#figure-3-memory-and-operations", ("costs",),
         "memory and operations over length: ViViT-L about 12 × and 5 × ours at 32 frames, 24 × and 8 × at 64"),
    Item("Figure 4", "#figure-4-from-scratch", ("from scratch",),
         "small models from scratch on SSv2: TRecViT above ViViT, PureLRU very poor; curves without printed figures"),
    Item("Figure 5", "#figure-5-other-temporal-parts", ("costs",),
         "Figure 3 with LSTM and Conv1D in the recurrence's place"),
    Item("Figure 6", "tracking.md#how-well", (),
         "tracked points, zoomed crops over time",
         "DAVIS and Perception Test are not at hand; drawn by `trecvit eval tapvid --pictures`, "
         "[tracking](tracking.md#how-well)"),
    Item("Figure 7", "#figure-7-memorisation-over-distance", ("memory",),
         "PSNR and steps/s over how far back the frame is; ViViT-L runs out of memory beyond 80, TRecViT is decent "
         "to 144"),
    Item("Figure 8", "#figures-8-and-9-recalled-frames", ("memory",), "recalled frames: pictures"),
    Item("Figure 9", "#figures-8-and-9-recalled-frames", ("memory",), "recalled frames: pictures"),
    Item("Section 1", "#section-1-frames-per-second", ("speed",),
         "about 300 frames/s in point tracking, on an unnamed machine",
         "no GPU was at hand"),
)
# fmt: on
