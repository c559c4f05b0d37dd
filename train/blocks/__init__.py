"""Building blocks of the methods, in literal and fused form."""
