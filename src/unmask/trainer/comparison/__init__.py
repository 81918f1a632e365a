"""Methods x tasks x seeds at equal compute: a recipe in; runs, tables and figures out.

recipe    what is compared, and how each run's recipe follows from it
plan      the runs, in order
jobs      one run: pretraining a base, probing the cost of a step, training and measuring
run       doing them, several at a time, resumable
ledger    cells.jsonl, a line for each run
results   numbers from the lines: choices, means, intervals, paired differences
report    tables and figures from the numbers
"""
