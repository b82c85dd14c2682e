"""Fitting a model: players, the iteration over them, checkpoints and the data that feeds it."""
