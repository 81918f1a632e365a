"""What runs inside a process sandbox, in full CPython with the standard library only.

Two processes that cannot see each other but for two pipes: `program` holds the untrusted code, `judge` holds the tests and
alone can tell the outside what happened. This package is mounted into both sandboxes, so it imports nothing of unmask.
"""
