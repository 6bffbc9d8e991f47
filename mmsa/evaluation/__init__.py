"""Evaluation: from a packed split to its report.

`evaluate.py` tells the story with `arguments` (the command line), `requested_targets` (what it
names), `one_model` (the same model on all ranks), `split_evaluation` (one target, from loader to
report) and `predict` (the predictions of all ranks). Each room imports only from the rooms above
it:

    scores          a new score, interval or test: from predictions to numbers, without files
    inputs          what is evaluated, the test ledger, sample facts; a new slice
    floors          a new floor: a simple method that a model must beat
    modality_audit  the same samples with texts or images masked or shuffled
    report          the files of one evaluation; a new chart goes into report/page
    compare         several reports together: comparisons and folds
"""
