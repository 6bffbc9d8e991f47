"""A user's own tables, folders and texts: packing and prediction read them in the same way."""
