"""Reading an answer in a completion and comparing it with the expected one."""
