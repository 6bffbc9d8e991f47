"""Samples that are duplicates of each other."""
