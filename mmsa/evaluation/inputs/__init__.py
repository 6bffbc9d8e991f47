"""What is evaluated: export and split, the ledger of test openings, and facts about the samples.

New slices (`slices`) and new facts about a sample (`sample_facts`) belong here.
"""
