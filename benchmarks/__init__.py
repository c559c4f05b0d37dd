"""Speed and accuracy, both from the same bundle through the same call."""

from importlib import import_module

if __name__ == "benchmarks":
    # Imported by the name of its folder, as in `python -m benchmarks.run` in a checkout.
    import_module("runtime.installation").require_installation()
