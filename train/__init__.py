"""Training of anomaly detectors on good images, in PyTorch. This module imports without torch."""

from importlib import import_module

if __name__ == "train":
    # Imported by the name of its folder, as in `python -m train.fit` in a checkout.
    import_module("runtime.installation").require_installation()

from flawline import FlawlineError

# Name -> "module:Class" of a flawline.train.method.Method, which is imported when it is used.
METHODS = {
    "simplenet": "flawline.train.methods.simplenet:SimpleNet",
    "supersimplenet": "flawline.train.methods.supersimplenet:SuperSimpleNet",
    "glass": "flawline.train.methods.glass:Glass",
    "patchcore": "flawline.train.methods.patchcore:PatchCore",
    "cutpaste": "flawline.train.methods.cutpaste:CutPaste",
    "cutswap": "flawline.train.methods.cutswap:CutSwap",
    "padim": "flawline.train.methods.padim:PaDiM",
    "spd": "flawline.train.methods.spd:SPD",
    "ssnf": "flawline.train.methods.ssnf:SSNF",
    "fastflow": "flawline.train.methods.fastflow:FastFlow",
    "stfpm": "flawline.train.methods.stfpm:STFPM",
    "rd4ad": "flawline.train.methods.rd4ad:RevDist",
    "cflow": "flawline.train.methods.cflow:CFlow",
    "csflow": "flawline.train.methods.csflow:CSFlow",
    "differnet": "flawline.train.methods.differnet:DifferNet",
    "ae_ssim": "flawline.train.methods.ae_ssim:AESSIM",
    "draem": "flawline.train.methods.draem:DRAEM",
    "riad": "flawline.train.methods.riad:RIAD",
    "intra": "flawline.train.methods.intra:InTra",
}


class TrainError(FlawlineError):
    """Training cannot start or continue; the message is one line that ends with the remedy."""
