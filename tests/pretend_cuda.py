"""A CPU under the name of a CUDA device, to test code for GPUs where there is none.

Its tensors hold their numbers on the CPU, and their device is `cuda:0`. As on a GPU, operations on tensors of two
devices fail, except for the few that PyTorch allows. The Triton kernels run in Triton's interpreter. Not imitated:
asynchrony, rounding, limits of memory and of launches.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_any, tree_map

CUDA = torch.device("cuda", 0)
_aten = torch.ops.aten
# Copies between devices, and indices, which may be on the CPU.
_MIX = {
    _aten._to_copy.default,
    _aten.copy_.default,
    _aten.index.Tensor,
    _aten.index_put_.default,
    _aten.index_put.default,
}


_WAITS = {_aten._local_scalar_dense.default, _aten.nonzero.default, _aten.masked_select.default, _aten.equal.default}


class CudaTensor(Tensor):
    """A tensor that seems to be on a GPU."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> CudaTensor:
        tensor: Any = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device="cpu"
        )
        tensor.raw = raw
        return tensor

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def __repr__(self, **_: Any) -> str:
        return f"CudaTensor({self.raw})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in _MIX and _is_mixed((args, kwargs)):
            raise RuntimeError(f"{func}: expected all tensors on one device, got cuda:0 and cpu")
        device = kwargs.get("device")
        leaves = func is _aten._to_copy.default and device is not None and torch.device(device).type == "cpu"
        wrappers = {id(tensor.raw): tensor for tensor in _wrappers((args, kwargs))}
        result = func(*tree_map(_raw, args), **tree_map(_raw, kwargs))
        if leaves or func in _WAITS:
            PretendCuda.crossings.append(str(func))
        if func is _aten.copy_.default:
            return args[0]
        if leaves or (isinstance(args[0] if args else None, Tensor) and func is _aten._local_scalar_dense.default):
            return result
        return tree_map(lambda part: wrappers[id(part)] if id(part) in wrappers else _wrap(part), result)


class PretendCuda(TorchFunctionMode):
    """Within it, `device="cuda"` makes tensors that seem to be on a GPU.

    Attributes:
        crossings: Operations so far that copied between host and device or waited for the device.
    """

    crossings: ClassVar[list[str]] = []

    def __enter__(self) -> Any:
        # Parameters on another device are new ones, as their class is another.
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (Tensor.numpy, Tensor.__array__) and isinstance(args[0], CudaTensor):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")
        if func is Tensor.tolist and isinstance(args[0], CudaTensor):
            return args[0].detach().raw.tolist()
        if func in (Tensor.cuda, Tensor.cpu):
            device = CUDA if func is Tensor.cuda else torch.device("cpu")
            func, args = Tensor.to, (args[0], device)
        if func is Tensor.to:
            return _moved(*args, **kwargs)
        names_devices = func in (torch.device, torch._C._nn._parse_to)
        if names_devices or not tree_any(_is_cuda, (args, kwargs)):
            return func(*args, **kwargs)
        result = func(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs))
        return tree_map(_wrap, result)


def _moved(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    """`Tensor.to`."""
    given = (*args, *kwargs.values())
    other = next((value for value in given if isinstance(value, Tensor)), None)
    device = next((value for value in given if isinstance(value, (str, torch.device))), None)
    dtype = next((value for value in given if isinstance(value, torch.dtype)), None)
    if other is not None:
        device, dtype = other.device, other.dtype
    dtype = tensor.dtype if dtype is None else dtype
    to_cuda = isinstance(tensor, CudaTensor) if device is None else _is_cuda(device)
    if isinstance(tensor, CudaTensor) and not to_cuda:
        assert torch.device(device).type == "cpu", device
        return _aten._to_copy(tensor, dtype=dtype, device="cpu")
    layout = {name: value for name, value in kwargs.items() if name == "memory_format"}
    if device is not None and not to_cuda and torch.device(device).type != "cpu":
        layout["device"] = device
    same = Tensor.to(tensor, dtype=dtype, copy=any(value is True for value in args[2:]), **layout)
    return _Upload.apply(same) if to_cuda and not isinstance(same, CudaTensor) else same


class _Upload(torch.autograd.Function):
    """A copy to the device; its gradient is copied back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        PretendCuda.crossings.append("copy to the device")
        return _wrap(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _raw(grads[0])


def _is_cuda(value: Any) -> bool:
    if isinstance(value, str):
        return value.partition(":")[0] == "cuda"
    return isinstance(value, torch.device) and value.type == "cuda"


def _on_cpu(value: Any) -> Any:
    return torch.device("cpu") if _is_cuda(value) else value


def _raw(value: Any) -> Any:
    if isinstance(value, torch.device):
        return _on_cpu(value)
    return value.raw if isinstance(value, CudaTensor) else value


def _wrap(value: Any) -> Any:
    return CudaTensor(value) if isinstance(value, Tensor) and not isinstance(value, CudaTensor) else value


def _wrappers(value: Any) -> list[CudaTensor]:
    found: list[CudaTensor] = []
    tree_map(lambda part: found.append(part) if isinstance(part, CudaTensor) else None, value)
    return found


def _is_mixed(value: Any) -> bool:
    """Whether tensors are on two devices; numbers in tensors without axes may be on the CPU."""
    return tree_any(
        lambda part: isinstance(part, Tensor) and not isinstance(part, CudaTensor) and math.prod(part.shape) != 1, value
    )
