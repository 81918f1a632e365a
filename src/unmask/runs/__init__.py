"""Files that a run writes. One module writes and reads each kind of file."""
