"""`python -m launch study`: a question asked of many runs.

command.py     the command
question.py    STUDY.yaml: base, variants, seeds, folds, a search
trials.py      its runs: directories, settings, what state each is in
attempts.py    the attempts at a run that have ended, and when it is left alone
workers.py     threads that run one process at a time each, and end together
packing.py     the shards of each fold
running.py     trains and evaluates what is left to do, several at a time
searching.py   claims and trains the trials of a search (search/)
pruning.py     stops the hopeless ones
answer.py      what the runs say: means, deviations, paired differences; the winner
final.py       the one opening of the test split
outcome.py     the files of an answer
table.py       the state of the study as a table
page.py        study.html
slurm.py       an array of jobs that work on a study
"""
