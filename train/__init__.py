"""Detectors: trained on good images only, in PyTorch. This file imports without torch."""

from importlib.util import find_spec

# name -> "module:Class" of a train.method.Method, resolved when used.
METHODS = {
    "simplenet": "train.simplenet:SimpleNet",
}


def require_extra(command: str) -> None:
    """End a command that needs the train extra with one line where it is not installed: exit status 2."""
    missing = [name for name in ("torch", "onnx", "matplotlib", "tqdm") if find_spec(name) is None]
    if missing:
        import sys

        print(f"{command}: needs {', '.join(missing)}; pip install 'flawline[train]'", file=sys.stderr)
        raise SystemExit(2)
