"""What the study measures: a bundle, or a network that is made for the study."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from flawline.benchmarks.measure.sessions import InferenceCall
from flawline.benchmarks.studies.gpu_check.calls import Absent, gpu_engines, open_engines
from flawline.benchmarks.studies.options import NetworkOptions
from flawline.extras import missing_package
from flawline.runtime.bundle import Bundle, read_bundle
from flawline.runtime.engines import ENGINES, EngineError
from flawline.runtime.engines.cuda import open_cuda
from flawline.runtime.environment import cpu_name

# What the rows in torch are called where there are none.
TORCH_ROWS = "the published and the fused form in PyTorch"


@dataclass(frozen=True)
class Subject:
    """A bundle and all calls that run it, which are open until their stack is closed.

    `name` is that of the results. `device` is the product name of the GPU, or of the CPU where no
    call uses a GPU. `calls` are by description; `absent` says why others are missing.
    """

    name: str
    bundle: Bundle
    weights: str
    device: str
    calls: dict[str, InferenceCall]
    absent: list[Absent]


def bundle_subject(
    path: Path, checkpoint: Path | None, torch_device: str, cache: Path | None, stack: ExitStack
) -> Subject:
    """Open every usable engine on a bundle and, with its checkpoint, the forms in torch.

    `cache` is the folder for compiled plans; None uses that of the bundle. Raises BundleError,
    TrainError, and EngineError if nothing can be measured.
    """
    bundle = read_bundle(path)
    calls: dict[str, InferenceCall] = {}
    gpu = None
    absent = []
    if checkpoint is None:
        absent.append(Absent(TORCH_ROWS, _why_not_in_torch()))
    else:
        # Needs torch, which a machine that only inspects lacks.
        from flawline.benchmarks.studies.gpu_check import torch_forms

        device = torch_forms.open_device(torch_device)
        method = torch_forms.method_of_bundle(checkpoint, bundle)
        calls.update(torch_forms.torch_calls(method, device))
        gpu = torch_forms.gpu_name(device)
    engines = open_engines(bundle, list(ENGINES), stack, cache)
    absent += engines.absent
    calls.update(engines.calls)
    if not calls:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in absent)
        raise EngineError(f"nothing can be measured on this machine; {reasons}")
    if gpu is None and engines.on_gpu:
        gpu = _gpu_name()
    weights = bundle.manifest.provenance.get("train_weights", "unknown")
    name = path.resolve().name
    return Subject(name, bundle, weights, gpu or cpu_name(), calls, absent)


def network_subject(
    options: NetworkOptions, torch_device: str, cache: Path | None, folder: Path, stack: ExitStack
) -> Subject:
    """Make a network, write a bundle around it to `folder`, and open its forms in torch.

    On a GPU, the engines that compile for it are opened too. Raises EngineError, TrainError and
    DataError.
    """
    if find_spec("torch") is None:
        raise EngineError(f"without --bundle, this study {missing_package('torch')}")
    from flawline.benchmarks.studies.gpu_check import torch_forms

    device = torch_forms.open_device(torch_device)
    # The bundle comes first: torch_calls moves modules of the method to the device.
    method, bundle = torch_forms.network_with_bundle(options, folder)
    calls: dict[str, Any] = dict(torch_forms.torch_calls(method, device))
    gpu = torch_forms.gpu_name(device)
    absent = []
    if gpu is not None:
        engines = open_engines(bundle, gpu_engines(), stack, cache)
        calls.update(engines.calls)
        absent = engines.absent
    name = f"{method.name}-{method.settings.backbone}-{method.geometry.height}"
    return Subject(name, bundle, options.weights, gpu or cpu_name(), calls, absent)


def _why_not_in_torch() -> str:
    if find_spec("torch") is None:
        return "PyTorch is not installed; with it, --checkpoint adds them"
    return "give the --checkpoint that the bundle was built from"


def _gpu_name() -> str:
    cuda = open_cuda()
    try:
        return cuda.device
    finally:
        cuda.close()
