"""The study of the exact rewrites: what the fused form of a method saves, and that it is exact."""
