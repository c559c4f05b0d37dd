"""The HTML report of a bundle: `python -m benchmarks.bundle_report`."""
