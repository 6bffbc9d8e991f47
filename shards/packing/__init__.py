"""From examples to tars: chunks, workers, parts, and whole directories."""
