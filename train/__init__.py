"""Detectors: trained on good images only, in PyTorch. This file imports without torch."""

from importlib.util import find_spec

from flawline import FlawlineError

# name -> "module:Class" of a train.method.Method, resolved when used.
METHODS = {
    "simplenet": "flawline.train.methods.simplenet:SimpleNet",
    "patchcore": "flawline.train.methods.patchcore:PatchCore",
    "padim": "flawline.train.methods.padim:PaDiM",
    "ssnf": "flawline.train.methods.ssnf:SSNF",
    "fastflow": "flawline.train.methods.fastflow:FastFlow",
}


class TrainError(FlawlineError):
    """Training cannot go on; the message is one line and ends with the remedy."""


def require_extra(command: str, *packages: str) -> None:
    """End a command that needs the train extra, or these of it, with one line where they are not: exit status 2."""
    missing = [
        name
        for name in packages or ("torch", "onnx", "matplotlib", "tqdm", "FrEIA")
        if find_spec(name) is None
    ]
    if missing:
        import sys

        print(
            f"{command}: needs {', '.join(missing)}; pip install 'flawline[train]'", file=sys.stderr
        )
        raise SystemExit(2)
