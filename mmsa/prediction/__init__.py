"""`python -m mmsa predict`: a model's answers for every row of a user's own data.

inputs/   what INPUT is: a table, a folder of images with texts, packed shards
batches   windows of rows, sorted by length, cut as an evaluation cuts a split
loader    loader processes: from rows to tensors
pieces    results that are done, in a folder next to OUT, for --resume
outputs   the rows of INPUT with the results: CSV, TSV, JSONL, Parquet
run       one prediction, from INPUT to OUT, by any number of processes
"""
