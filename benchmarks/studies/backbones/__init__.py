"""The study of backbones: image AUROC of detectors by the weights of their backbone."""

# The detector that trains nothing; every other detector of the study is a method.
NEAREST = "nearest"
