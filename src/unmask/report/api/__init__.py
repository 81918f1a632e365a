"""Parts of the public Python API that use both the trainer and the reports."""
