"""Accuracy and false alarms under changed light, lens, position, compression and noise."""
