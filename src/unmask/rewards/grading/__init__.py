"""Code that finds the answer in a completion and compares it with the correct answer."""
