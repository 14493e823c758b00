"""The two gates of an RG-LRU in one matrix multiplication: they read the same input.

B streams · T frames · N tokens per frame · E recurrent width · F eigenvalues, E real or E/2 complex ones
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trecvit.model.lru import RGLRU, BlockDiagonalLinear


class GatePair(nn.Module):
    """Input gate and recurrence gate, computed together and in float32."""

    def __init__(self, input_gate: BlockDiagonalLinear, a_gate: BlockDiagonalLinear) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.cat([input_gate.weight, a_gate.weight], dim=2), requires_grad=False)
        bias = torch.stack([input_gate.bias.flatten(), a_gate.bias.flatten()])
        self.bias = nn.Parameter(bias[:, None], requires_grad=False)

    def forward(self, x: Float[Tensor, "B T N E"]) -> Float[Tensor, "2 B T N F"]:
        """Both gates before their sigmoids, in new memory."""
        num_blocks, block_in, _ = self.weight.shape
        blocks = x.reshape(x.shape[:-1].numel(), num_blocks, block_in).transpose(0, 1)  # [G,BTN,E/G]
        # The bias is added later: a multiplication that adds takes up to twice as long as one that does not.
        mapped = torch.bmm(blocks, self.weight)
        pair: Tensor = mapped.unflatten(2, (2, -1)).permute(2, 1, 0, 3)  # [2,BTN,G,F/G]
        # One copy brings both into the order and the precision of the recurrence.
        pair = pair.to(torch.float32, memory_format=torch.contiguous_format).contiguous()
        return pair.flatten(2).add_(self.bias).view(2, *x.shape[:-1], self.bias.shape[-1])


class JoinedRGLRU(RGLRU):
    """An `RGLRU` with joined gates, for inference.

    Args:
        lru: Its eigenvalues are shared, its gates copied.
    """

    def __init__(self, lru: RGLRU) -> None:
        nn.Module.__init__(self)
        self.is_complex = lru.is_complex
        self.pair = GatePair(lru.input_gate, lru.a_gate)
        self.a_param = lru.a_param
        if self.is_complex:
            self.a_imag_param = lru.a_imag_param

    def gates(self, x: Float[Tensor, "B T N E"]) -> tuple[Float[Tensor, "B T N F"], Float[Tensor, "B T N F"]]:
        """See `RGLRU.gates`."""
        input_gate, recurrence_gate = self.pair(x)
        return input_gate, recurrence_gate
