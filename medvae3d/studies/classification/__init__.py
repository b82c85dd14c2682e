"""Classification: whether a classifier gets better on real, unseen cases, and presets for it."""
