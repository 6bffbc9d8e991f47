"""What a model must beat: the majority class, and TF-IDF with logistic regression on text alone.

A new floor is a file here, and a field of `fitting.Floors`. All are fitted on train and chosen on
val.
"""
