"""From a trained method to a bundle: an exact rewrite, its ONNX graphs, and proof of parity.

Importing this package needs neither torch nor onnx.
"""

from importlib import import_module

if __name__ == "export":
    # Imported by the name of its folder, as in `python -m export.build` in a checkout.
    import_module("runtime.installation").require_installation()

from flawline import FlawlineError


class ExportError(FlawlineError):
    """An export failed or must not be used."""
