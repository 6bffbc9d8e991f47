"""Several reports together: models compared on the same samples, and the folds of a protocol."""
