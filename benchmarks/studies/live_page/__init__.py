"""The study of the live page: what it costs the stream."""
