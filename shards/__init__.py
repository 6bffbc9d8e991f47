"""`python -m shards`: raw data to WebDataset tars, once. Nothing here runs during training.

Imports from `mmsa` are limited to what both sides must agree on: errors, labels, the manifest and
index formats, and the packed form of a text and a picture.
"""
