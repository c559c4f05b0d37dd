"""Doubtful images: good images of a data set that the other ones do not support.

A defective part among the good images lowers the share of defects that a detector finds. Before a
training, each image is compared with all others by features of the method's backbone: `descriptors`
computes them, `support` compares them, `listing` writes what a person then looks at, and `sheet`
draws it. Nothing is left out of the training; `flawline.train.data.exclusion` does that on request.
"""
