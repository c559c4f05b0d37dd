"""The study of the hot swap: how soon another bundle judges, and what that costs the frames."""
