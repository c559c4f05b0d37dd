"""The study of accuracy: mean and deviation of a method over several seeds."""
