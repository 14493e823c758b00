"""`gated_scan` with flash-linear-attention's kernel for the recurrence, for GPUs: something to hold our own against.

There is no RG-LRU in flash-linear-attention; HGRN's recurrence h_t = exp(g_t) h_(t-1) + x_t is the same one, with
g_t = log a_t and x_t already scaled. Gates, decay and root are then operations of their own, which write and keep for
the gradient several tensors of size B·T·N·E that `scan_triton` never makes.

Only `fused_recurrent_hgrn` will do. `chunk_hgrn`, faster for thousands of frames, gives the initial state no gradient
and takes none from the final one (read in fla-core 0.6.0).

B streams · T frames · N tokens per frame · E recurrent channels
"""

from __future__ import annotations

from fla.ops.hgrn import fused_recurrent_hgrn
from torch import Tensor

from trecvit.model.scan import gate_equations


def gated_scan_fla(
    x: Tensor, input_gate: Tensor, recurrence_gate: Tensor, a_param: Tensor, hidden: Tensor, fresh: Tensor
) -> Tensor:
    """All states; arguments as `trecvit.model.scan.gated_scan`, with a float32 `hidden`."""
    log_a, inputs = gate_equations(x, input_gate, recurrence_gate, a_param, fresh, hidden.dtype)
    # In float32, whatever the model's dtype is: the kernel rounds states to the dtype of its inputs. And of all states
    # the last is taken by the caller, not asked for here, so that its gradient comes through them.
    states: Tensor
    states, _ = fused_recurrent_hgrn(inputs.flatten(2), log_a.flatten(2), initial_state=hidden.flatten(1))
    return states.view_as(inputs)
