"""From examples to tars: chunks, workers, parts, and output directories."""
