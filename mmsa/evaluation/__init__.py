"""From a split to its report.

The story stands here: `targets` (what the command line asks for), `predict` (the predictions of all
ranks), `measure` (one evaluation from loader to report). The rooms, each importing only those above
it: `scores` (predictions to numbers), `inputs` (what is evaluated), `floors` (what a model must
beat), `modality_audit`, `report` (the files and the page of one evaluation), `several`
(comparisons and folds).
"""
