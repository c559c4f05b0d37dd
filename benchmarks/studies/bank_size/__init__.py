"""The study of PatchCore's memory bank: accuracy and speed over its size."""
