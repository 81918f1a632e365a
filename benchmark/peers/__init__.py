"""Speed and memory of this package beside the releases of the methods, with their own functions."""
