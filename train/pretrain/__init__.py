"""Pretraining of a backbone on procedural textures, as an alternative to ImageNet weights.

That features of procedural images carry over to photographs is from Kataoka et al., "Pre-training
without natural images" (2020; FractalDB), Baradad et al., "Learning to see by looking at noise"
(2021) and "Procedural image programs for representation learning" (2022).

The network learns to name an image's texture from the means of layer2 and layer3. In the last part
of a run, while the learning rate falls, four things are added:

- the images are larger, and two textures may meet in one;
- single positions of both levels name the texture that they see;
- parts of other images are laid onto some images;
- every scene is photographed twice: once with small faults, and once, in other light and a little
  moved, without. The vectors of one position must be far apart where a fault is, and close
  elsewhere.

A detector of anomalies relies on the last property. The card of the weights,
backbones/weights/resnet18-texture.json, lists what else was tried.
"""
