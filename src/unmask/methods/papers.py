"""The papers that the methods are from, to be cited: titles and authors as arXiv has them."""

from __future__ import annotations

from typing import NamedTuple


class Paper(NamedTuple):
    """One paper on arXiv."""

    title: str
    authors: str = ""
    """As BibTeX wants them; empty where nobody has looked them up in full."""


PAPERS: dict[str, Paper] = {
    "2603.12554": Paper(
        "Reinforcement Learning for Diffusion {LLMs} with Entropy-Guided Step Selection and Stepwise Advantages",
        "Kunde, Vishnu Teja and Doudi, Fatemeh and Farahbakhsh, Mahdi and Kalathil, Dileep and Narayanan, Krishna "
        "and Chamberland, Jean-Francois",
    ),
    "2504.12216": Paper(
        "d1: Scaling Reasoning in Diffusion Large Language Models via Reinforcement Learning",
        "Zhao, Siyan and Gupta, Devaansh and Zheng, Qinqing and Grover, Aditya",
    ),
    "2505.15809": Paper("{MMaDA}: Multimodal Large Diffusion Language Models"),
    "2505.19223": Paper("{LLaDA} 1.5: Variance-Reduced Preference Optimization for Large Language Diffusion Models"),
    "2506.20639": Paper("{DiffuCoder}: Understanding and Improving Masked Diffusion Models for Code Generation"),
    "2507.08838": Paper(
        "wd1: Weighted Policy Optimization for Reasoning in Diffusion Language Models",
        "Tang, Xiaohang and Dolga, Rares and Yoon, Sangwoong and Bogunovic, Ilija",
    ),
    "2509.06949": Paper("Revolutionizing Reinforcement Learning Framework for Diffusion Large Language Models"),
    "2509.21474": Paper(
        "d2: Improved Techniques for Training Reasoning Diffusion Language Models",
        "Wang, Guanghan and Turok, Gilad and Schiff, Yair and Arriola, Marianne and Kuleshov, Volodymyr",
    ),
    "2509.23924": Paper(
        "Taming Masked Diffusion Language Models via Consistency Trajectory Reinforcement Learning with Fewer Decoding Step"
    ),
    "2510.04019": Paper("Simple Policy Gradients for Reasoning with Diffusion Language Models", "Zhan, Anthony"),
    "2510.08554": Paper("Improving Reasoning for Diffusion Language Models via Group Diffusion Policy Optimization"),
    "2510.09541": Paper("{SPG}: Sandwiched Policy Gradient for Masked Diffusion Language Models"),
    "2510.11683": Paper(
        "Boundary-Guided Policy Optimization for Memory-efficient {RL} of Diffusion Large Language Models"
    ),
    "2512.03759": Paper("Principled {RL} for Diffusion {LLMs} Emerges from a Sequence-Level Perspective"),
    "2601.15165": Paper(
        "The Flexibility Trap: Rethinking the Value of Arbitrary Order in Diffusion Language Models",
    ),
    "2602.06462": Paper(
        "{DiSPO}: Diffusion-State Policy Optimization for Masked Diffusion Language Models",
        "Oba and Furuta and Okazaki",
    ),
    "2607.15200": Paper(
        "Mask-Aware Policy Gradients for Diffusion Language Models",
        'Raajesh, Haran and Shah, Kulin and Klivans, Adam and Kr{\\"a}henb{\\"u}hl, Philipp',
    ),
}
"""By arXiv number."""


def bibtex(number: str) -> str:
    """The entry of a paper of `PAPERS`; what nobody has looked up is left out."""
    paper = PAPERS[number]
    authors = f"  author  = {{{paper.authors}}},\n" if paper.authors else ""
    return (
        f"@article{{arxiv{number.replace('.', '_')},\n  title   = {{{paper.title}}},\n{authors}"
        f"  journal = {{arXiv preprint arXiv:{number}}},\n  year    = {{20{number[:2]}}},\n"
        f"  url     = {{https://arxiv.org/abs/{number}}}\n}}"
    )
