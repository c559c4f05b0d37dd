"""Accuracy and false alarms where defective images are among the good ones of the training."""
