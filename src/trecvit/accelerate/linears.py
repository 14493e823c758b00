"""Linear layers for inference: packed for oneDNN, in 8-bit integers, or written for a compiler to fuse.

A matrix multiplication's kernel holds its results in registers, where a GELU or a sum is almost free and saves a pass
over memory. So each of these layers takes over the GELU that follows it in the model (`replace_linears`), and adds
as `Linear` does. `PackedLinear` computes with oneDNN, its weight laid out once as the kernel reads it; `FusedLinear`
leaves that to torch.compile. `QuantizedLinear` and `FusedQuantizedLinear` do nearly the same in 8-bit integers.
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

from trecvit.model.linear import Linear
from trecvit.model.lru import GatedMLP, TemporalBlock
from trecvit.model.trecvit import SpatialBlock
from trecvit.processor import supports

# The layer that the module's `gelu` follows, by its name in the module.
_BEFORE_GELU: dict[type[nn.Module], str] = {SpatialBlock: "mlp_up", GatedMLP: "gate", TemporalBlock: "linear_y"}
_TWO_SQRT_2_OVER_PI = 2.0 * math.sqrt(2.0 / math.pi)
_INT8_ZERO = 128  # of unsigned bytes that stand for signed ones


def replace_linears(
    parent: nn.Module, make: Callable[[Linear, nn.GELU | None], nn.Module], *, source: nn.Module | None = None
) -> None:
    """Replace the linear layers directly in a module.

    Args:
        parent: The module. A GELU that follows one of its layers becomes the identity.
        make: Builds a layer from the `Linear` and the GELU that follows it, if one does.
        source: A module of the same kind to read the layers from, by default `parent`.
    """
    before_gelu = next((name for kind, name in _BEFORE_GELU.items() if isinstance(parent, kind)), None)
    for name, linear in list((source or parent).named_children()):
        if not isinstance(linear, Linear):
            continue
        gelu = parent.get_submodule("gelu") if name == before_gelu else None
        assert gelu is None or isinstance(gelu, nn.GELU)
        setattr(parent, name, make(linear, gelu))
        if gelu is not None:
            parent.gelu = nn.Identity()


class FusedLinear(Linear):
    """A `Linear` and the GELU after it for torch.compile.

    The tanh GELU is written as y sigmoid(2 sqrt(2/pi) (y + 0.044715 y^3)): the same function with one exponential in
    place of a tanh, which is quick in the kernels of inductor's matrix multiplications.

    Args:
        linear: Its weight and bias are shared.
        gelu: What follows it, if anything.
    """

    def __init__(self, linear: Linear, gelu: nn.GELU | None = None) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._gelu = gelu

    def forward(
        self, x: Float[Tensor, "*any I"], *, add: Float[Tensor, "*any O"] | None = None
    ) -> Float[Tensor, "*any O"]:
        """See `Linear.forward`."""
        y = F.linear(x, self.weight, self.bias)
        if self._gelu is not None:
            y = _tanh_gelu(y.float()).to(x.dtype) if self._gelu.approximate == "tanh" else self._gelu(y)
        return y if add is None else add + y


class PackedLinear(nn.Module):
    """A `Linear` and the GELU after it for inference on the CPU. Its packed weight cannot be saved.

    Args:
        linear: Its weight is copied.
        gelu: What follows it, if anything.
        rows: The usual number of vectors per call; only the speed depends on it.
    """

    def __init__(self, linear: Linear, gelu: nn.GELU | None = None, *, rows: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = linear.bias.detach()
        self._then: tuple[str, list[object], str] = ("none", [], "") if gelu is None else ("gelu", [], gelu.approximate)
        self._linear: Callable[..., Any] = torch.ops.mkldnn._linear_pointwise.default
        self._linear_add: Callable[..., Any] = torch.ops.mkldnn._linear_pointwise.binary

    def forward(
        self, x: Float[Tensor, "*any I"], *, add: Float[Tensor, "*any O"] | None = None
    ) -> Float[Tensor, "*any O"]:
        """See `Linear.forward`."""
        y: Tensor
        if add is not None and self._then[0] == "none":
            y = self._linear_add(x, add, self._weight, self.bias, "add")
            return y
        y = self._linear(x, self._weight, self.bias, *self._then)
        return y if add is None else add + y

    @staticmethod
    def is_available(dtype: torch.dtype = torch.float32) -> bool:
        """Whether oneDNN packs weights of this dtype here, float32 or bfloat16."""
        return supports("onednn" if dtype == torch.float32 else "onednn_bfloat16")


class QuantizedLinear(nn.Module):
    """A `Linear` and the GELU after it in 8-bit integers, for inference on the CPU. Its weight cannot be saved.

    Each row of the weight and each input vector has a scale of its own, at which its largest absolute value is 127. So
    the result of a vector does not depend on the others of a call, and a frame gives the same in a stream, in a clip
    and in a batch. Sums of products are exact.

    Args:
        linear: In float32; its weight is copied.
        gelu: What follows it, if anything.
        rows: The usual number of vectors per call; only the speed depends on it.
    """

    def __init__(self, linear: Linear, gelu: nn.GELU | None = None, *, rows: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        integers, self._scale = _to_int8(linear)
        self._weight = _packed_int8(integers, rows)
        self._zero = torch.zeros(self.out_features, dtype=torch.int32)
        self.bias = linear.bias.detach()
        self._gelu = gelu

    def forward(
        self, x: Float[Tensor, "*any I"], *, add: Float[Tensor, "*any O"] | None = None
    ) -> Float[Tensor, "*any O"]:
        """See `Linear.forward`; `x` is float32."""
        vectors = x.reshape(-1, self.in_features)
        scale = _scale(vectors)
        # Unsigned, with 128 for 0: oneDNN has no fast kernel for signed ones here, to which PyTorch converts faster.
        integers = (vectors / scale).round_().to(torch.int8).view(torch.uint8).add_(_INT8_ZERO)
        y = torch.addcmul(self.bias, self.product(integers), scale).view(*x.shape[:-1], self.out_features)
        if self._gelu is not None:
            y = self._gelu(y)
        return y if add is None else add + y

    def product(self, integers: UInt8[Tensor, "R I"]) -> Float[Tensor, "R O"]:
        """W (integers - 128) in float32: the part that is computed in 8 bits."""
        return _product(integers, self._weight, self._scale, self._zero, torch.float32)

    @staticmethod
    def is_available() -> bool:
        """Whether the CPU adds up products of bytes without overflow (AVX-512 VNNI), and PyTorch has the kernels."""
        return supports("onednn") and supports("int8")


class FusedQuantizedLinear(nn.Module):
    """A `QuantizedLinear` for torch.compile, which fuses scaling and rounding into the passes around it.

    It takes float32 or bfloat16. Compile it with weights as constants (inductor's `freezing`), so that they are packed
    once.

    Args:
        linear: Its weight is copied, best in float32.
        gelu: What follows it, if anything.
        rows: The usual number of vectors per call; only the speed depends on it.
    """

    _integers: Tensor
    _scale: Tensor
    _zero: Tensor
    bias: Tensor

    def __init__(self, linear: Linear, gelu: nn.GELU | None = None, *, rows: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self._rows = linear.in_features, linear.out_features, rows
        integers, scale = _to_int8(linear)
        self.register_buffer("_integers", integers, persistent=False)
        self.register_buffer("_scale", scale, persistent=False)
        self.register_buffer("_zero", torch.zeros(self.out_features, dtype=torch.int32), persistent=False)
        self.register_buffer("bias", linear.bias.detach().float(), persistent=False)
        self._gelu = gelu

    def forward(
        self, x: Float[Tensor, "*any I"], *, add: Float[Tensor, "*any O"] | None = None
    ) -> Float[Tensor, "*any O"]:
        """See `Linear.forward`."""
        vectors = x.reshape(-1, self.in_features).float()
        scale = _scale(vectors)
        integers = ((vectors / scale).round() + _INT8_ZERO).to(torch.uint8)
        weight = _packed_int8(self._integers, self._rows)
        y = _product(integers, weight, self._scale, self._zero, x.dtype).float() * scale + self.bias
        if self._gelu is not None:
            y = _tanh_gelu(y) if self._gelu.approximate == "tanh" else self._gelu(y)
        y = y.to(x.dtype).view(*x.shape[:-1], self.out_features)
        return y if add is None else add + y


def packed_linears(
    x: Float[Tensor, "R I"], weight: Float[Tensor, "O I"], bias: Float[Tensor, " O"] | None
) -> dict[str, Callable[[], Tensor]]:
    """W x + b by each kernel for packed weights that runs here: "onednn", and in float32 "mkl"; possibly none.

    Args:
        x: Input of every call; it must stay alive.
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


def _scale(rows: Float[Tensor, "R I"]) -> Float[Tensor, "R 1"]:
    """The step of each row whose largest absolute value is 127 steps; above 0 even where the row is 0."""
    largest = torch.maximum(rows.amax(dim=1, keepdim=True), rows.amin(dim=1, keepdim=True).neg_())
    return largest.div_(127.0).clamp_(min=torch.finfo(rows.dtype).tiny)


def _to_int8(linear: Linear) -> tuple[Int8[Tensor, "O I"], Float[Tensor, " O"]]:
    """A weight in whole steps, and each row's step."""
    weight = linear.weight.detach().float()
    scale = _scale(weight)
    return (weight / scale).round_().to(torch.int8), scale.flatten()


# A custom operator, because PyTorch's own has no fake kernel and a compiler has to know the shape before it packs.
@torch.library.custom_op("trecvit::packed_bytes", mutates_args=())
def _packed_int8(weight: Tensor, rows: int) -> Tensor:
    """[O,I] -> [I,O] as oneDNN's kernel reads it."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack.default(weight, [rows, weight.shape[1]])
    return packed


@_packed_int8.register_fake
def _(weight: Tensor, rows: int) -> Tensor:
    return weight.new_empty(weight.shape[1], weight.shape[0])


def _product(integers: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
    """W (integers - 128): the sums of products are exact, and rounded once to `dtype`."""
    y: Tensor = torch.ops.onednn.qlinear_pointwise.default(
        integers, 1.0, _INT8_ZERO, weight, scale, zero, None, 1.0, 0, dtype, "none", [], ""
    )
    return y
