"""Everything that a run leaves on disk; one module writes and reads each kind of file."""
