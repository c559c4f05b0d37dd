"""Procedural demo data: four products photographed over an imaginary line, in MVTec AD layout.

The project ships no pictures, so `make demo` and the tests train on these. `weave` imitates a plain woven
cloth, `metal` a ground steel plate seen by a grey camera, `bearing` a flanged ball bearing that lies a little
differently each time, `board` a populated circuit board with placement tolerance.

Each picture is built in three steps: a scene (reflectance, relief, gloss), then perhaps a defect IN the
scene, and only then lamp, lens and sensor, so that shading, blur and noise lie over a defect too. The steps
draw from separate random streams: the good and the defective picture of one seed show the same piece under
the same lamp with the same noise, and differ only where the defect is.

No single number of the whole picture tells good from bad: lamp, exposure, blur, contrast and pose move the
mean, the spread, the sharpness and a small thumbnail further than a defect does, and a defect may be lighter
or darker than what it lies on.
"""

from flawline.train.data.demo.dataset import write_demo
from flawline.train.data.demo.products import PRODUCTS, render

__all__ = ["PRODUCTS", "render", "write_demo"]
