"""The study of accuracy: what a method reaches over several seeds."""
