"""`python -m unmask`: the same as the `unmask` command, for `accelerate launch -m unmask`."""

from __future__ import annotations

from unmask.cli import main

if __name__ == "__main__":
    main()
