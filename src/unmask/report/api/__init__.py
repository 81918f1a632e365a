"""The parts of the public Python API that stand on training and on reports: training, opened runs and comparisons."""
