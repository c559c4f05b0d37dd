"""The study of image AUROC along the training of SimpleNet, before and after its annealing."""
