"""Weight files of torchvision: downloaded, read, and compared with their network."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flawline.train import TrainError
from flawline.train.backbones.base import flags_without_download, unreadable

URL = "https://download.pytorch.org/models/"


def download(file: str, name: str) -> Path:
    """Return the path of a weight file of torchvision, downloaded if it is not there yet.

    file: its name, which ends with the first digits of its SHA-256. name: of the backbone. Raises
    TrainError.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = file.split("-")[-1].split(".")[0]
    try:
        torch.hub.download_url_to_file(URL + file, str(path), hash_prefix=digest)
    except Exception as error:
        raise TrainError(
            f"weights imagenet: {URL}{file} cannot be downloaded ({error}); use "
            f"{flags_without_download(name)}, which is in this package, or fetch the file "
            f"elsewhere and pass it with --weights {file}"
        ) from error
    return path


def read_tensors(path: Path, name: str, *first: str) -> tuple[bytes, dict[str, Any]]:
    """Read a weight file: its bytes, and its tensors by their names.

    name: of the backbone. first: names of tensors, one of which every such file has. Raises
    TrainError.
    """
    try:
        data = path.read_bytes()
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:
        raise TrainError(
            f"weights {path}: not a torch state_dict; save one with torch.save(model.state_dict())"
        ) from error
    if not isinstance(state, dict) or not any(tensor in state for tensor in first):
        raise TrainError(f"weights {path}: no state_dict of {name} (no {first[0]}); pass one")
    return data, state


def load_checked(network: nn.Module, state: dict[str, Any], path: Path, title: str) -> None:
    """Load tensors that must be exactly those of the network, but for the BatchNorms' counters.

    title: what the network is called in the message. Raises TrainError.
    """
    own = network.state_dict()
    wrong = []
    for name, value in own.items():
        if name.endswith("num_batches_tracked"):
            continue
        if name not in state or state[name].shape != value.shape:
            wrong.append(name)
    wrong.sort()
    wrong += sorted(set(state) - set(own))
    if wrong:
        raise TrainError(
            f"weights {path}: not of {title} ({len(wrong)} tensors differ, first {wrong[0]}); "
            "see --backbone"
        )
    network.load_state_dict(state, strict=False)


def initialise(network: nn.Module, seed: int) -> None:
    """Initialise as He et al. and torchvision's ResNet do, from a generator of its own.

    Transposed convolutions get torch's default initialisation.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            # Drawn on the CPU, where the generator is, so that every device gets the same values.
            weight = torch.empty_like(module.weight, device="cpu")
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(
                    weight, mode="fan_out", nonlinearity="relu", generator=generator
                )
            else:
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)
            module.weight.data.copy_(weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
