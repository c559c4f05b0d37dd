"""Building blocks that several methods share, in their literal and their fused form."""
