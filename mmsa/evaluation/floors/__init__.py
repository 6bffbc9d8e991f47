"""Floors are simple methods that a model must beat: the majority class, and TF-IDF on the text.

A new floor is a file here and a field of `fitting.Floors`. Floors are fitted on train, and their
settings are chosen on val.
"""
