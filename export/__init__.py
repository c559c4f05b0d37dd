"""From a trained method to a bundle: an exact rewrite, its ONNX graphs, and proof of parity.

Importing this package needs neither torch nor onnx.
"""

import sys

try:
    from flawline import FlawlineError
except ModuleNotFoundError:
    # Imported by the name of its folder, as in `python -m export.build` in a checkout.
    print("flawline is not installed in this Python; run: pip install -e .", file=sys.stderr)
    raise SystemExit(2) from None


class ExportError(FlawlineError):
    """An export failed or must not be used."""
