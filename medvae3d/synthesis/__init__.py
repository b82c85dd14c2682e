"""From a trained model to volumes, masks and records on a grid."""
