"""Predictions -> scores with intervals: pure arithmetic on arrays, no files and no models.

A new score belongs here: in `sums` if it is a function of sums over samples, otherwise in a file
like `areas`; its title goes into `score_names`.
"""
