"""Causal depthwise convolution, RG-LRU and the temporal block around them (paper, Figure 1).

Everything works on [B,T,N,E] as it lies in memory, and every recurrent module is `forward(x, state) -> (y, state)`: the
same function for a clip (state of zeros) and for the next frames of a stream (state after the frames before).

B streams · T frames · N tokens per frame · D width · E recurrent width · F eigenvalues, E real or E/2 complex ones ·
G gate blocks · K conv taps · M MLP width

Sources: "paper" arXiv:2412.14294 section 3; "Griffin" arXiv:2402.19427 section 2.4 and appendix A; "code" the JAX
layers that the released model was built with, github.com/google-deepmind/recurrentgemma.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from trecvit.config import ModelConfig
from trecvit.model.initial import normal_
from trecvit.model.linear import Linear
from trecvit.model.recompute import Recomputing
from trecvit.model.scan import GATE_SHARPNESS, bounded_sqrt, gated_scan, linear_scan

NORM_EPS = 1e-6  # code: RMSNorm
_MAX_PHASE = 0.1  # code: complex eigenvalues start with phases in [0, 0.1 pi)


class LayerState(NamedTuple):
    """One layer's memory of each token's past, of constant size; `mixers.state_sizes` has the widths, which may be 0.

    Attributes:
        hidden: State of the recurrence, float32 (float64 for a float64 model) whatever the compute dtype.
        taps: The last K-1 inputs of the temporal convolution (none for K <= 1), in the model's dtype.
    """

    hidden: Float[Tensor, "B N E"]
    taps: Float[Tensor, "B taps N E"]


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + scale), with scale starting at 0 (code: RMSNorm)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(width))

    def forward(self, x: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T N D"]:
        """Normalise the last axis."""
        return F.rms_norm(x, self.scale.shape, self.scale + 1.0, eps=NORM_EPS)


class BlockDiagonalLinear(nn.Module):
    """A linear layer whose weight has G independent blocks on its diagonal, one per head (Griffin, appendix A)."""

    def __init__(self, width_in: int, width_out: int, num_blocks: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_blocks, width_in // num_blocks, width_out // num_blocks))
        self.bias = nn.Parameter(torch.zeros(num_blocks, width_out // num_blocks))
        # JAX counts the block axis into the fan-in, so the code's deviation is 1/sqrt(width_in), not
        # 1/sqrt(width_in / num_blocks) as in the paper and in the code's PyTorch twin.
        normal_(self.weight, width_in**-0.5)

    def forward(self, x: Float[Tensor, "B T N E"]) -> Float[Tensor, "B T N F"]:
        """Map the last axis, channels [0, E/G) by the first block and so on."""
        num_blocks, block_in, block_out = self.weight.shape
        blocks = x.reshape(-1, num_blocks, block_in).transpose(0, 1)  # [G,BTN,E/G]
        mapped = torch.baddbmm(self.bias[:, None], blocks, self.weight)  # [G,BTN,F/G]
        return mapped.transpose(0, 1).reshape(*x.shape[:-1], num_blocks * block_out)


class CausalConv(nn.Module):
    """Depthwise convolution over a frame and the K-1 before it; tap K-1 is the current frame."""

    def __init__(self, width: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(taps, width))
        self.bias = nn.Parameter(torch.zeros(width))
        normal_(self.weight, math.sqrt(0.01 / taps))  # code: variance_scaling(0.01, fan_in)

    def forward(
        self, x: Float[Tensor, "B T N E"], taps: Float[Tensor, "B taps N E"]
    ) -> tuple[Float[Tensor, "B T N E"], Float[Tensor, "B taps N E"]]:
        """Convolve; return the frames and the last K-1 inputs, for the next frames."""
        window = torch.cat([taps.to(x.dtype), x], dim=1) if taps.shape[1] else x
        y: Tensor = _DepthwiseConv.apply(window, self.weight, self.bias)  # type: ignore[no-untyped-call]
        # A copy: a view would keep the whole window alive, with other strides than the initial state's.
        return y, window[:, x.shape[1] :].to(taps.dtype).clone(memory_format=torch.contiguous_format)


class RGLRU(nn.Module):
    """Real- or complex-gated linear recurrent unit (paper, equations of section 3.1).

    i_t = sigmoid(W_x x_t + b_x),  r_t = sigmoid(W_a x_t + b_a),  a_t = sigmoid(lambda)^(c r_t),
    h_t = a_t h_(t-1) + sqrt(1 - |a_t|^2) (i_t x_t), and on the first frame of a stream h_1 = i_1 x_1.

    `a_param` is -lambda, so that log a_t = -c r_t softplus(a_param). With complex eigenvalues the first half of the
    channels holds real parts, the second half imaginary ones, and the phase of a_t is r_t * `a_imag_param`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.is_complex = config.lru_complex
        num_eigenvalues = config.lru_width // 2 if self.is_complex else config.lru_width
        self.input_gate = BlockDiagonalLinear(config.lru_width, num_eigenvalues, config.num_heads)
        self.a_gate = BlockDiagonalLinear(config.lru_width, num_eigenvalues, config.num_heads)
        self.a_param = _initial_a_param(config, num_eigenvalues)
        if self.is_complex:
            self.a_imag_param = nn.Parameter(torch.rand(num_eigenvalues).mul_(_MAX_PHASE * math.pi))

    def forward(
        self, x: Float[Tensor, "B T N E"], hidden: Float[Tensor, "B N E"], fresh: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B T N E"], Float[Tensor, "B N E"]]:
        """Continue the recurrence; gates and states are in `hidden`'s dtype, the result in `x`'s.

        Args:
            x: Inputs.
            hidden: State after the frames before; zeros for a fresh stream.
            fresh: Which streams start with the first of these frames. Their first input is not scaled down.
        """
        input_gate, recurrence_gate = self.gates(x)
        if self.is_complex:
            return self._complex_scan(x, input_gate, recurrence_gate, hidden, fresh)
        states, last = gated_scan(x, input_gate, recurrence_gate, self.a_param, hidden, fresh)
        return states.to(x.dtype), last

    def gates(self, x: Float[Tensor, "B T N E"]) -> tuple[Float[Tensor, "B T N F"], Float[Tensor, "B T N F"]]:
        """Input gate and recurrence gate before their sigmoids; F = E for real eigenvalues, E/2 for complex ones."""
        return self.input_gate(x), self.a_gate(x)

    def _complex_scan(
        self, x: Tensor, input_gate: Tensor, recurrence_gate: Tensor, hidden: Tensor, fresh: Tensor
    ) -> tuple[Tensor, Tensor]:
        dtype = hidden.dtype
        gate = torch.sigmoid(recurrence_gate.to(dtype))
        log_radius = -GATE_SHARPNESS * gate * F.softplus(self.a_param.to(dtype))
        gated = torch.sigmoid(input_gate.to(dtype)) * _to_complex(x.to(dtype))
        inputs = bounded_sqrt(-torch.expm1(2.0 * log_radius)) * gated
        inputs[:, 0] = torch.where(fresh[:, None, None], gated[:, 0], inputs[:, 0])
        decay = torch.polar(log_radius.exp(), gate * self.a_imag_param.to(dtype))
        states, last = linear_scan(decay.flatten(2), inputs.flatten(2), _to_complex(hidden).flatten(1))
        states, last = states.view_as(inputs), last.view_as(inputs[:, 0])
        return _to_real(states).to(x.dtype), _to_real(last)


class UngatedLRU(nn.Module):
    """The recurrence without its gates (paper, Table 1): h_t = a h_(t-1) + sqrt(1 - a^2) x_t, first frame h_1 = x_1.

    a = sigmoid(lambda), as in the linear recurrent unit (arXiv:2303.06349). Whether the power c stays is not in the
    paper; our choice is none, so that radii are those of the configuration. `a_param` is -lambda.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.a_param = _initial_a_param(config, config.lru_width)

    def forward(
        self, x: Float[Tensor, "B T N E"], hidden: Float[Tensor, "B N E"], fresh: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B T N E"], Float[Tensor, "B N E"]]:
        """See `RGLRU.forward`."""
        log_a = -F.softplus(self.a_param.to(hidden.dtype))
        inputs = bounded_sqrt(-torch.expm1(2.0 * log_a)) * x
        inputs[:, 0] = torch.where(fresh[:, None, None], x[:, 0], inputs[:, 0])
        decay = log_a.exp().expand_as(inputs)
        states, last = linear_scan(decay.flatten(2), inputs.flatten(2), hidden.flatten(1))
        return states.view_as(x).to(x.dtype), last.view_as(hidden)


class GatedMLP(Recomputing):
    """Griffin's MLP: W_3 (gelu(W_1 x) * W_2 x). TRecViT leaves it out, TAPNext has it."""

    def __init__(self, width: int, hidden_width: int, out_scale: float) -> None:
        super().__init__()
        self.gate = Linear(width, hidden_width)
        self.gelu = nn.GELU(approximate="tanh")
        self.up = Linear(width, hidden_width)
        self.down = Linear(hidden_width, width)
        # code: the kernels of gate and up are one [2, D, M] array whose first axis JAX counts into the fan-in.
        init_linear(self.gate, 0.5)
        init_linear(self.up, 0.5)
        init_linear(self.down, out_scale)

    def forward(self, x: Float[Tensor, "B T N D"], *, add: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T N D"]:
        """Map every token and add `add`."""
        return self._stage(self._down)(self.gate(x), self.up(x), add)

    def _down(
        self, gate: Float[Tensor, "B T N M"], up: Float[Tensor, "B T N M"], add: Float[Tensor, "B T N D"]
    ) -> Float[Tensor, "B T N D"]:
        gate = self.gelu(gate)
        down: Tensor = self.down(gate * up, add=add)
        return down


class TemporalBlock(Recomputing):
    """x + linear_out(gelu(linear_y n) * lru(conv(linear_x n))), n = RMSNorm(x) (paper, section 3.2 and Figure 1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, lru_width = config.width, config.lru_width
        out_scale = 2.0 / config.depth  # code: final_w_init_variance_scale
        self.skip = config.temporal_skip
        self.norm = RMSNorm(width)
        self.linear_y = Linear(width, lru_width)
        self.gelu = nn.GELU(approximate="tanh")
        self.linear_x = Linear(width, lru_width)
        self.conv = CausalConv(lru_width, config.conv_width) if config.conv_width else None
        self.lru = RGLRU(config) if config.lru_gates else UngatedLRU(config)
        self.linear_out = Linear(lru_width, width)
        self.mlp_norm = RMSNorm(width) if config.temporal_mlp else None
        self.mlp = GatedMLP(width, config.mlp_width, out_scale) if config.temporal_mlp else None
        init_linear(self.linear_y, 1.0)
        init_linear(self.linear_x, 1.0)
        init_linear(self.linear_out, out_scale)

    def forward(
        self, x: Float[Tensor, "B T N D"], state: LayerState, fresh: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B T N D"], LayerState]:
        """Mix each token with its own past, independently of the other tokens of its frame.

        Args:
            x: Tokens of the next frames.
            state: This layer's memory of the frames before.
            fresh: Which streams have no frames before.
        """
        gate, y = self._stage(self._branches)(x)
        y, state = self._stage(self._recurrence)(y, state, fresh)
        x = self._stage(self._join)(gate, y, x)
        if self.mlp is not None and self.mlp_norm is not None:
            x = self.mlp(self.mlp_norm(x), add=x)
        return x, state

    def _branches(self, x: Float[Tensor, "B T N D"]) -> tuple[Float[Tensor, "B T N E"], Float[Tensor, "B T N E"]]:
        normed = self.norm(x)
        return self.linear_y(normed), self.linear_x(normed)

    def _recurrence(
        self, y: Float[Tensor, "B T N E"], state: LayerState, fresh: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B T N E"], LayerState]:
        taps = state.taps
        if self.conv is not None:
            y, taps = self.conv(y, taps)
        y, hidden = self.lru(y, state.hidden, fresh)
        return y, LayerState(hidden, taps)

    def _join(
        self, gate: Float[Tensor, "B T N E"], y: Float[Tensor, "B T N E"], x: Float[Tensor, "B T N D"]
    ) -> Float[Tensor, "B T N D"]:
        joined: Tensor = self.linear_out(self.gelu(gate) * y, add=x if self.skip else None)
        return joined


def init_linear(linear: nn.Linear, variance_scale: float) -> None:
    """Initialise with normal weights of variance `variance_scale` / inputs and zero bias (code: variance_scaling)."""
    normal_(linear.weight, math.sqrt(variance_scale / linear.in_features))
    nn.init.zeros_(linear.bias)


def _initial_a_param(config: ModelConfig, num_eigenvalues: int) -> nn.Parameter:
    """-lambda, such that a^2 and not a is uniform between the squared radii (code: rnn_param_init)."""
    low, high = config.min_radius**2, config.max_radius**2
    uniform = torch.rand(num_eigenvalues)
    if uniform.is_meta:  # see `initial`
        return nn.Parameter(uniform)
    log_a = 0.5 * torch.log(uniform * (high - low) + low + 1e-8)
    return nn.Parameter(torch.log(torch.expm1(-log_a)))


class _DepthwiseConv(torch.autograd.Function):
    """y_t = bias + sum over taps k of weight_k * window_(t+k); autograd alone would fill a window of zeros per tap."""

    @staticmethod
    def forward(ctx: Any, window: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(window, weight)
        num_frames = window.shape[1] - len(weight) + 1
        taps = weight.to(window.dtype)
        y = torch.addcmul(bias.to(window.dtype), window[:, :num_frames], taps[0])
        for tap in range(1, len(taps)):
            y.addcmul_(window[:, tap : tap + num_frames], taps[tap])
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (grad,) = grad_outputs
        window, weight = ctx.saved_tensors
        num_frames = grad.shape[1]
        taps = weight.to(window.dtype)
        grad_window = torch.zeros_like(window)
        grad_weight = torch.empty_like(weight)
        for tap in range(len(taps)):
            span = slice(tap, tap + num_frames)
            grad_window[:, span].addcmul_(grad, taps[tap])
            grad_weight[tap] = (window[:, span] * grad).sum(dim=(0, 1, 2), dtype=weight.dtype)
        return grad_window, grad_weight, grad.sum(dim=(0, 1, 2), dtype=weight.dtype)


def _to_complex(x: Tensor) -> Tensor:
    real, imag = x.chunk(2, dim=-1)
    return torch.complex(real, imag)


def _to_real(x: Tensor) -> Tensor:
    return torch.cat([x.real, x.imag], dim=-1)
