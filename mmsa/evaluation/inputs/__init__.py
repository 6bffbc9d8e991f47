"""What is evaluated: export and split, each opening of the test split, and facts of the samples.

A new slice, or another fact of a sample that the shards know, belongs here.
"""
