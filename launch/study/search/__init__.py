"""The search of a study: which trials there are, what the next one tries, and what they say.

settings.py      `search:` of STUDY.yaml: the space, sampler and pruner
directories.py   the trials as directories, which are the only state
validations.py   what a run has written of its validations so far
history.py       Optuna's study, rebuilt in memory from the directories
summary.py       the trials as JSON, the best of them, importances
table.py         the state of the search as a table
charts.py        history, parallel coordinates and importances for study.html
"""
