"""Where shards are, and how their bytes get here. `reader.py` is above it."""
