"""Training of anomaly detectors on good images, in PyTorch. This module imports without torch."""

import sys

try:
    from flawline import FlawlineError
except ModuleNotFoundError:
    # Imported by the name of its folder, as in `python -m train.fit` in a checkout.
    print("flawline is not installed in this Python; run: pip install -e .", file=sys.stderr)
    raise SystemExit(2) from None

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
