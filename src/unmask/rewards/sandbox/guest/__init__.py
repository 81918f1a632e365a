"""Code that runs inside a process sandbox, in full CPython with only the standard library.

It runs in two processes that see each other only through two pipes. `program` holds the untrusted
code. `judge` holds the tests, and only it can report to the outside. This package is mounted into
both sandboxes, so it imports nothing from unmask.
"""
