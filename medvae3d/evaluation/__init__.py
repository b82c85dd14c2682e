"""How good a model and what it makes are, on cases that it has not seen."""
