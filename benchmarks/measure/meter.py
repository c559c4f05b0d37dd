"""The cost of a call in torch, counted while it runs: multiply-accumulates and bytes written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """The cost of one call.

    `macs` counts the multiply-accumulates of convolutions and matrix products, `bytes_written`
    the memory of all new tensors.
    """

    macs: int
    bytes_written: int


@torch.inference_mode()
def measure_cost(call: Callable[[], object]) -> Cost:
    """Run `call` twice and count what torch computes and writes."""
    # On a CPU torch's counter sees the products of this implementation of attention only.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
        call()
    with _BytesWritten() as written:
        call()
    # torch counts a multiplication and an addition as two.
    return Cost(flops.get_total_flops() // 2, written.total)


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters of a module."""
    return sum(parameter.numel() for parameter in module.parameters())


class _BytesWritten(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums the bytes that operators write into new storage.

    A view writes nothing, and writes in place are not counted. Adaptive pooling first copies an
    input that is not contiguous, which is counted too.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # Storage of the arguments: a result that lies in it is a view or was written in place.
        existing = set()
        for tensor in _tensors((args, kwargs)):
            existing.add(tensor.untyped_storage().data_ptr())
        for tensor in _tensors(result):
            if tensor.untyped_storage().data_ptr() not in existing:
                self.total += _size(tensor)
        if "adaptive_avg_pool" in str(func) and not args[0].is_contiguous():
            self.total += _size(args[0])
        return result


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
