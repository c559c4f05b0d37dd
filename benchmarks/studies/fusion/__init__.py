"""The study of the exact rewrites: speed and exactness of the fused form of a method."""
