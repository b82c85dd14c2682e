"""Studies: whether a segmenter or classifier gets better on real, unseen cases."""
