"""Export of a torch module to serialised ONNX, the one call of torch's exporter."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

OPSET = 17  # TensorRT 8.x accepts no later one


def trace_to_onnx(
    module: nn.Module,
    example: Tensor,
    input_name: str,
    outputs: Sequence[str] = (),
    dynamic: bool = False,
) -> bytes:
    """Export a module of one input in eval mode; the graph is not checked.

    `example` is an input of the right shape and type. `dynamic` makes the first axis of the input
    and of every output dynamic, with the name N. Without `outputs`, torch names them.
    """
    axes = None
    if dynamic:
        axes = {name: {0: "N"} for name in (input_name, *outputs)}
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        # The TorchScript exporter is used on purpose: it writes opset 17 directly, where the
        # newer one writes opset 18 and fails to convert it. Its deprecation notice is the only
        # warning that is silenced.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        torch.onnx.export(
            module,
            (example,),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=[input_name],
            output_names=list(outputs),
            dynamic_axes=axes,
        )
    return buffer.getvalue()


def size_of(x: Tensor) -> tuple[int, int]:
    """Return height and width of [N, C, H, W] as numbers, which are constants of an exported graph.

    While a module is traced, the exporter would otherwise write nodes that compute them.
    """
    with warnings.catch_warnings():
        # It says that the size becomes a constant, as it should.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        return int(x.shape[2]), int(x.shape[3])
