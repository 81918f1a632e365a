"""BibTeX entries of the papers that the methods come from, read from papers.bib. Titles and authors
are as on arXiv."""

from __future__ import annotations

import re
from pathlib import Path

_ENTRY = re.compile(r"@article\{arxiv(\d{4})_(\d{5}),\n.*?\n\}", re.DOTALL)

PAPERS = {
    f"{entry[1]}.{entry[2]}": entry[0]
    for entry in _ENTRY.finditer(Path(__file__).with_suffix(".bib").read_text(encoding="utf-8"))
}
"""BibTeX entry of each paper by its arXiv number."""


def bibtex(number: str) -> str:
    """Return the BibTeX entry of a paper on arXiv. The entry has no title if papers.bib does not
    contain the paper.

    Example:
        >>> print(bibtex("1706.03762"))
        @article{arxiv1706_03762,
          journal = {arXiv preprint arXiv:1706.03762},
          year    = {2017},
          url     = {https://arxiv.org/abs/1706.03762}
        }
    """
    return PAPERS.get(number) or (
        f"@article{{arxiv{number.replace('.', '_')},\n  journal = {{arXiv preprint arXiv:{number}}},\n"
        f"  year    = {{20{number[:2]}}},\n  url     = {{https://arxiv.org/abs/{number}}}\n}}"
    )
