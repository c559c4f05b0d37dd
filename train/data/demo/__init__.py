"""Procedural demo data: four products photographed on an imaginary line, in MVTec AD layout.

The project ships no photographs, so `make demo` and the tests train on these images. `weave`
imitates a plain woven cloth, `metal` a ground steel plate seen by a monochrome camera, `bearing` a
flanged ball bearing that lies a little differently each time, `board` a populated circuit board
with placement tolerance.

Each image is built in three steps: a scene (reflectance, relief, gloss), then perhaps a defect in
the scene, and only then lamp, lens and sensor. Shading, blur and noise therefore lie over a defect
too. The steps draw from separate random streams: the good and the defective image of one seed show
the same piece under the same lamp with the same noise, and differ only where the defect is.

No simple statistic of a whole image separates good from bad: lamp, exposure, blur, contrast and
pose change the mean, the standard deviation, the sharpness and a small thumbnail more than a defect
does, and a defect may be lighter or darker than the surface around it.
"""

from flawline.train.backbones.facts import TEXTURE
from flawline.train.data.demo.dataset import write_demo
from flawline.train.data.demo.products import PRODUCTS, render

__all__ = ["DEMO_PRODUCT", "DEMO_WEIGHTS", "PRODUCTS", "render", "write_demo"]

# What is trained without a data set of the user, and with which weights, which need no download.
DEMO_PRODUCT = "bearing"
DEMO_WEIGHTS = TEXTURE
