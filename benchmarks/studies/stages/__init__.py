"""The study of the way to production: a detector as published, rewritten, and in each engine."""
