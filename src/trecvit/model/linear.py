"""Linear maps, with what is done right after them, so that one kernel can do both.

Kernels of matrix products keep their results in registers for a moment; a GELU or a sum that is done there costs next
to nothing, and a pass over memory less. `Linear` says what is meant, in plain operations. `FusedLinear` says the same
so that a compiler does it quickly; `PackedLinear` computes it with oneDNN, its weight laid out once as the kernel reads
it. `QuantizedLinear` computes nearly the same in 8-bit integers, and `FusedQuantizedLinear` that for a compiler.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn

from trecvit.config import Gelu
from trecvit.processor import supports

GELU: dict[Gelu, str] = {"tanh": "tanh", "erf": "none"}  # ours -> torch's word for it
_TWO_SQRT_2_OVER_PI = 2.0 * math.sqrt(2.0 / math.pi)


class Linear(nn.Linear):
    """y = W x + b, then optionally a GELU, or another tensor added."""

    def forward(
        self, x: Float[Tensor, "*any I"], *, gelu: Gelu | None = None, add: Float[Tensor, "*any O"] | None = None
    ) -> Float[Tensor, "*any O"]:
        """Maps the last axis.

        Args:
            x: Inputs.
            gelu: Which GELU the result goes through, or None.
            add: What is added to the result, such as the input of a residual block.
        """
        y: Tensor = super().forward(x)
        if gelu is not None:
            y = F.gelu(y, approximate=GELU[gelu])
        return y if add is None else add + y


class FusedLinear(Linear):
    """A `Linear` for torch.compile, with the tanh GELU by its other name: y sigmoid(2 sqrt(2/pi) (y + 0.044715 y^3)).

    That is the same function with one exponential in place of a tanh, which inductor's kernels of products do quickly.

    Args:
        linear: Whose weight and bias it takes over.
    """

    def __init__(self, linear: Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(
        self, x: Float[Tensor, "*any I"], *, gelu: Gelu | None = None, add: Float[Tensor, "*any O"] | None = None
    ) -> Float[Tensor, "*any O"]:
        """See `Linear.forward`."""
        if gelu != "tanh":
            return super().forward(x, gelu=gelu, add=add)
        y = _tanh_gelu(F.linear(x, self.weight, self.bias).float()).to(x.dtype)
        return y if add is None else add + y


class PackedLinear(nn.Module):
    """A `Linear` for inference on the CPU. Its packed weight is no parameter and cannot be saved.

    Args:
        linear: Of which the weight is copied.
        rows: How many vectors at once it will mostly map; only the speed depends on it.
    """

    def __init__(self, linear: Linear, rows: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = linear.bias.detach()
        self._map: Callable[..., Any] = torch.ops.mkldnn._linear_pointwise.default
        self._map_and_add: Callable[..., Any] = torch.ops.mkldnn._linear_pointwise.binary

    def forward(
        self, x: Float[Tensor, "*any I"], *, gelu: Gelu | None = None, add: Float[Tensor, "*any O"] | None = None
    ) -> Float[Tensor, "*any O"]:
        """See `Linear.forward`."""
        y: Tensor
        if gelu is not None:
            y = self._map(x, self._weight, self.bias, "gelu", [], GELU[gelu])
        elif add is not None:
            y = self._map_and_add(x, add, self._weight, self.bias, "add")
            return y
        else:
            y = self._map(x, self._weight, self.bias, "none", [], "")
        return y if add is None else add + y

    @staticmethod
    def is_available(dtype: torch.dtype = torch.float32) -> bool:
        """Whether oneDNN packs weights of this dtype here, float32 or bfloat16."""
        return supports("onednn" if dtype == torch.float32 else "onednn_bfloat16")


class QuantizedLinear(nn.Module):
    """A `Linear` in 8-bit integers, for inference on the CPU. Its weight is no parameter and cannot be saved.

    Each row of the weight has a scale of its own, and each vector that is mapped one that is found when it comes: of
    both, the largest absolute value is 127. So no vector's result depends on which others are mapped beside it, and a
    frame gives the same in a stream, in a clip and in a batch. Sums of products are exact.

    Args:
        linear: A float32 one, of which the weight is copied.
        rows: How many vectors at once it will mostly map; only the speed depends on it.
    """

    def __init__(self, linear: Linear, rows: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        integers, self._scale = _in_bytes(linear)
        self._weight = _packed_bytes(integers, rows)
        self._zero = torch.zeros(self.out_features, dtype=torch.int32)
        self.bias = linear.bias.detach()

    def forward(
        self, x: Float[Tensor, "*any I"], *, gelu: Gelu | None = None, add: Float[Tensor, "*any O"] | None = None
    ) -> Float[Tensor, "*any O"]:
        """See `Linear.forward`; `x` is float32."""
        vectors = x.reshape(-1, self.in_features)
        scale = _scale(vectors)
        # Unsigned, with 128 for 0: oneDNN has no fast kernel for signed ones here, to which PyTorch converts faster.
        integers = (vectors / scale).round_().to(torch.int8).view(torch.uint8).add_(_ZERO)
        y = torch.addcmul(self.bias, self.product(integers), scale).view(*x.shape[:-1], self.out_features)
        if gelu is not None:
            y = F.gelu(y, approximate=GELU[gelu])
        return y if add is None else add + y

    def product(self, integers: UInt8[Tensor, "R I"]) -> Float[Tensor, "R O"]:
        """W (integers - 128): all that is done in 8 bits, in float32."""
        return _product(integers, self._weight, self._scale, self._zero, torch.float32)

    @staticmethod
    def is_available() -> bool:
        """Whether the CPU adds up products of bytes without overflow (AVX-512 VNNI), and PyTorch has the kernels."""
        return supports("onednn") and supports("int8")


class FusedQuantizedLinear(nn.Module):
    """A `QuantizedLinear` for torch.compile, which takes finding scales and rounding into the passes that there are.

    It maps float32 or bfloat16. Compile it with weights as constants (inductor's `freezing`), so that they are packed
    once.

    Args:
        linear: Of which the weight is copied, best in float32.
        rows: How many vectors at once it will mostly map; only the speed depends on it.
    """

    _integers: Tensor
    _scale: Tensor
    _zero: Tensor
    bias: Tensor

    def __init__(self, linear: Linear, rows: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self._rows = linear.in_features, linear.out_features, rows
        integers, scale = _in_bytes(linear)
        self.register_buffer("_integers", integers, persistent=False)
        self.register_buffer("_scale", scale, persistent=False)
        self.register_buffer("_zero", torch.zeros(self.out_features, dtype=torch.int32), persistent=False)
        self.register_buffer("bias", linear.bias.detach().float(), persistent=False)

    def forward(
        self, x: Float[Tensor, "*any I"], *, gelu: Gelu | None = None, add: Float[Tensor, "*any O"] | None = None
    ) -> Float[Tensor, "*any O"]:
        """See `Linear.forward`."""
        vectors = x.reshape(-1, self.in_features).float()
        scale = _scale(vectors)
        integers = ((vectors / scale).round() + _ZERO).to(torch.uint8)
        weight = _packed_bytes(self._integers, self._rows)
        y = _product(integers, weight, self._scale, self._zero, x.dtype).float() * scale + self.bias
        if gelu == "tanh":
            y = _tanh_gelu(y)
        elif gelu is not None:
            y = F.gelu(y, approximate=GELU[gelu])
        y = y.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return y if add is None else add + y


def packed_maps(
    x: Float[Tensor, "R I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None
) -> dict[str, Callable[[], Tensor]]:
    """W x + b by the kernels for packed weights that run here: "onednn"'s, and in float32 "mkl"'s; there may be none.

    Args:
        x: What each of them maps, whenever it is called; it must not go away.
        weight: W.
        bias: b.
    """
    kernels: dict[str, Callable[[], Tensor]] = {}
    if PackedLinear.is_available(x.dtype):
        ordered = torch.ops.mkldnn._reorder_linear_weight.default(weight, len(x))
        kernels["onednn"] = partial(torch.ops.mkldnn._linear_pointwise.default, x, ordered, bias, "none", [], "")
    if x.dtype == torch.float32 and supports("mkl"):
        packed = torch.ops.mkl._mkl_reorder_linear_weight.default(weight, len(x))
        kernels["mkl"] = partial(torch.ops.mkl._mkl_linear.default, x, packed, weight, bias, len(x))
    return kernels


def _tanh_gelu(y: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    return y * torch.sigmoid(_TWO_SQRT_2_OVER_PI * (y + 0.044715 * y * y * y))


_ZERO = 128


def _scale(rows: Float[Tensor, "R I"]) -> Float[Tensor, "R 1"]:
    """What one step of 127 is worth in each row; more than 0 also where all is 0."""
    largest = torch.maximum(rows.amax(dim=1, keepdim=True), rows.amin(dim=1, keepdim=True).neg_())
    return largest.div_(127.0).clamp_(min=torch.finfo(rows.dtype).tiny)


def _in_bytes(linear: Linear) -> tuple[Int8[Tensor, "O I"], Float[Tensor, " O"]]:
    """A weight in whole steps, and what a step is worth in each row."""
    weight = linear.weight.detach().float()
    scale = _scale(weight)
    return (weight / scale).round_().to(torch.int8), scale.flatten()


# An operation of our own, as PyTorch does not say which shape its own gives, and a compiler must know before it packs.
@torch.library.custom_op("trecvit::packed_bytes", mutates_args=())
def _packed_bytes(weight: Tensor, rows: int) -> Tensor:
    """[O,I] -> [I,O] as oneDNN's kernel reads it."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack.default(weight, [rows, weight.shape[1]])
    return packed


@_packed_bytes.register_fake
def _(weight: Tensor, rows: int) -> Tensor:
    return weight.new_empty(weight.shape[1], weight.shape[0])


def _product(integers: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
    """W (integers - 128): the sums of products are exact, and rounded once to `dtype`."""
    y: Tensor = torch.ops.onednn.qlinear_pointwise.default(
        integers, 1.0, _ZERO, weight, scale, zero, None, 1.0, 0, dtype, "none", [], ""
    )
    return y
