"""Speed and accuracy, both from the same bundle through the same call."""
