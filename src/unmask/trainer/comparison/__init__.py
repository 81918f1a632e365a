"""Comparison of methods on tasks over seeds, at equal compute.

recipe    the settings of a comparison
resolve   the recipe of each run in it
load      settings from a file, with changes and selections
plan      the jobs in their order
jobs      one job: pretrain a base, or train and measure
run       runs the jobs, several at a time, and resumes
verify    runs one of the runs again, and compares the results
workers   the processes that run the jobs
scheduled  jobs on a cluster, through submitit
ledger    cells.jsonl, one line for each job
sources   hashes of the code that a result depends on
outcomes  whether each example of an evaluation was solved, packed
results   numbers from the lines: choices, means, intervals, paired differences
equal_calls  accuracy after an equal number of reward calls
statistics  tests of the differences, and intervals over seeds and examples
"""
