"""The paper's tables and figures (arXiv:2412.14294, version 2), their statements, and where they are reproduced."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Item:
    """A table or figure of the paper.

    Attributes:
        name: Its name in the paper.
        anchor: Its section on the results page, or in another document; empty if there is none.
        studies: The studies that measure it.
        content: Its content in short; figures are top-1 in percent by default.
        here: Notes beside the measurements, or the reason why it is not shown.
        shown: Whether it is reproduced here.
    """

    name: str
    anchor: str
    studies: tuple[str, ...]
    content: str
    here: str = ""
    shown: bool = True


_ON_PAPERS_DATA = "The data set is not at hand"
_TOO_SMALL = (
    "Run only with half a million parameters and 300 steps on the synthetic world, too little to conclude from: "
    "`scripts/paper {}`"
)
# fmt: off
ITEMS = (
    Item("Table 1", "", (),
         "parts of the recurrent block, SSv2: ours 66.7, Griffin's range 66.2, no skip 15.5, no gates 66.0, no "
         "convolution 64.9",
         _TOO_SMALL.format("ablations"), shown=False),
    Item("Table 2", "", (),
         "temporal parts, SSv2 and training steps/s: LRU 66.7 at 8.9, attention 62.4 at 8.3, LSTM 63.7 at 6.0, "
         "Conv1D 40.3 at 10.5",
         _TOO_SMALL.format("ablations"), shown=False),
    Item("Table 3", "#table-3-costs", ("costs",),
         "SSv2: TRecViT 66.8 with 32 frames, 68.2 with 64; ViViT-L 65.9; parameters, operations and memory",
         "the costs; the accuracy is not shown, as for Table 4: recipe `something_something_v2`"),
    Item("Table 4", "", (),
         "Kinetics-400: TRecViT 76.5, ViViT-B 78.1, ViViT-L 78.7, causal ViViT-L 76.3",
         f"{_ON_PAPERS_DATA}; `trecvit eval videos` with the model `base_k400` measures it, the recipe `kinetics400` "
         "trains it. Instead: every stored tensor equals the original code's on fixtures (`tests/test_official.py`)",
         shown=False),
    Item("Table 5", "", (),
         "frozen features, attention readout: TRecViT 46.0 (K400) and 53.9 (SSv2), VideoMAE-L 45.8 and 53.7",
         "The attention readout of small models on the synthetic world stays near chance, pre-trained or not: "
         "`scripts/paper frozen`", shown=False),
    Item("Table 6", "#table-6-long-video-memorisation", ("memory",),
         "a past frame recalled, PSNR in dB: trained and tested on 96 frames ViViT-L 32.2, TRecViT 29.1; trained on "
         "64, tested on 96, 15.1 and 26.4"),
    Item("Table 7", "", (),
         "tracking by a readout, average Jaccard: DAVIS 0.706 (VideoMAE 0.703, MooG 0.687), Perception Test 0.783 "
         "(0.761, 0.760)",
         "Its readout on small frozen models learns too little to beat static points: `scripts/paper frozen`. The "
         "bundled tracker is of another kind: [tracking](tracking.md#how-well)", shown=False),
    Item("Table 8", "model.md#numbers", (),
         "sizes S, B and L",
         "presets `small`, `base` and `large`, [parameters counted](model.md#numbers)"),
    Item("Table 9", "", (),
         "settings of supervised training",
         "Recipes `kinetics400`, `something_something_v2` have them and have not been run: no data, no GPU. The same "
         "loop trained the bundled models", shown=False),
    Item("Table 10", "", (),
         "settings of masked autoencoding",
         "Recipe `mae_k400` has them and has not been run: no data, no GPU. `mae_world` is a small one", shown=False),
    Item("Table 11", "", (),
         "settings of readouts on frozen features",
         "The defaults of `trecvit probe` ([evaluation](evaluation.md#probe-frozen-features)); see Table 5",
         shown=False),
    Item("Table 12", "", (),
         "settings of tracking: 8 and 16 frames, 200,000 and 40,000 steps",
         "Recipe `track_readout_world` has its rate and frames, for fewer steps: MOVi-E is not at hand; see Table 7",
         shown=False),
    Item("Table 13", "", (),
         "frames per patch, SSv2: 1: 66.8, 2: 64.5, 4: 61.5, 8: 57.7",
         _TOO_SMALL.format("ablations"), shown=False),
    Item("Table 14", "", (),
         "taps of the convolution, SSv2: 2: 66.4, 4: 66.8, 8: 65.7",
         _TOO_SMALL.format("ablations"), shown=False),
    Item("Table 15", "", (),
         "least eigenvalue at the start, SSv2: 0.6: 66.8, 0.7: 66.6, 0.8: 66.5, 0.9: 66.2",
         _TOO_SMALL.format("ablations"), shown=False),
    Item("Figure 1", "model.md", (),
         "the architecture",
         "[equation by equation](model.md); equal to the original code on fixtures (`tests/test_official.py`)"),
    Item("Figure 2", "", (),
         "eigenvalues before and after training on memorisation: from [0.9, 0.999] they are pushed towards the least",
         "In the few updates of a small model they hardly move: `scripts/paper eigenvalues`", shown=False),
    Item("Figure 3", "#figure-3-memory-and-operations", ("costs",),
         "memory and operations over length: ViViT-L about 12 × and 5 × ours at 32 frames, 24 × and 8 × at 64"),
    Item("Figure 4", "", (),
         "small models from scratch on SSv2: TRecViT above ViViT, PureLRU very poor; curves without printed figures",
         _TOO_SMALL.format("from-scratch"), shown=False),
    Item("Figure 5", "#figure-5-other-temporal-parts", ("costs",),
         "Figure 3 with LSTM and Conv1D in the recurrence's place"),
    Item("Figure 6", "tracking.md#on-real-videos", (),
         "tracked points, zoomed crops over time",
         "pictures of DAVIS by `trecvit eval points --first-last --pictures`, [tracking](tracking.md#on-real-videos)"),
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
