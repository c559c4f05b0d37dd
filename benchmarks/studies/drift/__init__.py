"""Study: changes of a stream that are named, and warnings without a change."""
