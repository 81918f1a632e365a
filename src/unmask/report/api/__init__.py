"""The parts of the public Python API that need both training and reports."""
