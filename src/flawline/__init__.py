"""Flawline: visual anomaly detection, from good images to a verdict per camera frame.

The packages live in the folders of the repository and are linked here, so that they are all
imported as `flawline.*`: `flawline.train`, `flawline.export`, `flawline.runtime`,
`flawline.cameras`, `flawline.benchmarks`.
"""

__version__ = "0.1.0"


class FlawlineError(Exception):
    """A mistake of the user or a condition of the machine, not a bug.

    The message is one line that ends with the remedy. Commands print it and end with `exit_code`.
    """

    exit_code = 2
