"""A running inspection: the loop over the frames of a camera, and its counts and times."""
