"""Training of anomaly detectors on good images, in PyTorch. This module imports without torch."""

from importlib.util import find_spec

from flawline import FlawlineError

# Name -> "module:Class" of a flawline.train.method.Method, which is imported when it is used.
METHODS = {
    "simplenet": "flawline.train.methods.simplenet:SimpleNet",
    "patchcore": "flawline.train.methods.patchcore:PatchCore",
    "padim": "flawline.train.methods.padim:PaDiM",
    "ssnf": "flawline.train.methods.ssnf:SSNF",
    "fastflow": "flawline.train.methods.fastflow:FastFlow",
}


class TrainError(FlawlineError):
    """Training cannot start or continue; the message is one line that ends with the remedy."""


def method_class_path(name: str) -> str:
    """Return the "module:Class" of a method; raises TrainError for a name that is not listed."""
    if name not in METHODS:
        raise TrainError(f"method {name!r} is unknown; known: {', '.join(METHODS)}")
    return METHODS[name]


def require_extra(command: str, *packages: str) -> None:
    """End a command that needs the train extra with one line if a package of it is missing."""
    missing = []
    for name in packages or ("torch", "onnx", "matplotlib", "tqdm", "FrEIA"):
        if find_spec(name) is None:
            missing.append(name)
    if missing:
        raise SystemExit(f"{command}: needs {', '.join(missing)}; pip install 'flawline[train]'")
