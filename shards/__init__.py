"""`python -m shards`: raw data to WebDataset tars, once. Nothing here runs during training.

It imports from `mmsa` only what both sides must agree on: errors, labels, the manifest and index
formats, and the packed form of a text and an image.
"""
