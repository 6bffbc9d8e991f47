"""`python -m launch study`: a question asked of many runs.

command.py     the command
question.py    STUDY.yaml: base, variants, seeds, folds
trials.py      its runs: directories, settings, what state each is in
packing.py     the shards of each fold
running.py     trains and evaluates what is left to do, several at a time
answer.py      what the runs say: means, deviations, paired differences; the winner
final.py       the one opening of the test split
table.py       the state of the study as a table
page.py        study.html
"""
