"""How good the volumes are: scores on cases that the model has not seen."""
