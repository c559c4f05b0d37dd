"""Classifiers whose gradients say which pixels of an image are salient.

This module imports without torch. A network is a `flawline.train.saliency.base.SaliencyNetwork`.
"""

from __future__ import annotations

# Name -> "module:Class" of a SaliencyNetwork, which is imported when it is used.
NETWORKS = {
    "vgg16": "flawline.train.saliency.vgg16:VGG16",
    "lite0": "flawline.train.saliency.lite0:Lite0",
}
