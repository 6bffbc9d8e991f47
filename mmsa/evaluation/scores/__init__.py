"""Predictions -> scores with intervals: pure arithmetic on arrays, no files and no models.

A new score belongs here: in `sums` where it is a function of sums over samples, else as `areas`
does it. Also what scores are called (`words`).
"""
