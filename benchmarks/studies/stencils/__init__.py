"""The study of SimpleNet's patch aggregation: its exact forms, timed against each other."""
