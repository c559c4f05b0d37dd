"""From a trained method to a bundle: an exact rewrite, its ONNX graphs, and proof of parity.

Importing this package needs neither torch nor onnx.
"""

if __name__ == "export":
    # Started as `python -m export.build` in a checkout: everything else is imported as flawline.*.
    import importlib.util
    import sys

    if importlib.util.find_spec("flawline") is None:
        print("flawline is not installed in this Python; run: pip install -e .", file=sys.stderr)
        raise SystemExit(2)

from flawline import FlawlineError


class ExportError(FlawlineError):
    """An export failed or must not be used."""
