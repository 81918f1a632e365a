"""Everything that a run leaves on disk, each kind of file written and read by one module."""
