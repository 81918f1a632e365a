"""Variants of a correct number, as people and models write it. Some keep its meaning.

Each is a pattern with `N` for the number. If N is the correct answer, patterns of `SAME` must earn
the reward, and those of `OTHER` must not.
"""

from __future__ import annotations

import re

SAME = r"""
N | N. | N, | N… | +N | =N | = N | $N | N$ | \$N | €N | US$N | USD N | N USD | AUD N | Rs N | Rs. N | ¥N | N yen | N €
#N | [N] | (N) | {N} | **N** | *N* | __N__ | `N` | $N$ | $$N$$ | \(N\) | \[N\] | \text{N} | \mathrm{N} | \mathbf{N}
\underline{N} | \displaystyle N | The answer is N. | The answer is **N**. | **The answer is N** | **Answer:** N
Answer: N | Final answer: N | **Final Answer: N** | #### N | Total: N | Total = N | Total cost: $N | The total is N
So the answer is N | x = N | x=N | Janet has N dollars | There are N eggs left | She earns $N per week
They need N more chairs | The number of eggs is N | The total number of eggs is **N**. | It takes N hours | N eggs
N golden retrievers | N eggs. | N~eggs | N\text{ eggs} | N \text{ dollars} | N (eggs) | N eggs per day
N miles per hour | N km/h | N miles/h | N mph | N sec | N secs | N min | N min. | N mins | N hr | N hrs | N yrs
N years old | N lb | N lbs | N kg | Nkg | Ng | N in | N inches | N ft | N feet | N sq. ft. | N square feet | N cm²
N cm^2 | N m^3 | N cubic meters | Nm | Nmin | Nkm/h | N°C | N °C | N° | N degrees | N^\circ | N^{\circ} | N\% | N%
N percent | N pct | N per cent | N¢ | N cents | Np | N' | N" | N more | N left | N left over | N to spare | N each
N in total | N in all | N altogether | N less | N points | N times | N times as many | N apples left | N more than Bob
N minutes earlier than Wayne | N days a week | N quarters | N base hits | N people | N of them | N out | N squares
N pages a day | N years | N ounces of chocolate | N students in the class | N <br> | N<|eot_id|> | N eggs are left
It is $N | That makes N | N is the answer | a total of N | a total of N eggs | N AUD | N-foot | HK$N | N.0 | N.00 | N/1
N days | N hours per week | N a week | N/hr | $N/hr | N euros | N pounds | N per person | N times a day | \textbf{N}
\mbox{N} | \boxed{N} | \fbox{N} | {\bf N} | N\text{ minutes} | N\,\text{cm} | N\ \text{cm} | N\text{ cm}^2
N \textrm{ cm} | \color{blue}N | N\, | \left(N\right) | N more cupcakes | N years ago | N%. | x = N. | $x = N$
$x=N$ apples | \(x = N\) | The answer is: N | The correct answer is N. | Therefore, the answer is N.
The final answer is $N$. | Bob has N. | They sold N tickets | The profit is $N | Profit: $N | The cost is $N.00 | N \\
"""
"""The same number, in another form or with words that leave it unchanged."""

OTHER = r"""
N or so | N or more | N or less | N or fewer | N or 7 | 7 or N | either N or 7 | N and 7 | N, 7 | N; 7 | N 7 | N/7 | N-7
N to 7 | N – 7 | between N and 7 | from N to 7 | N, N | N+ | N- | >N | <N | ≥N | ~N | ≤ N | \ge N | about N | around N
approximately N | roughly N | nearly N | almost N | at least N | at most N | more than N | less than N | no more than N
up to N | over N | under N | N at most | N at least | N minimum | N? | N ? | N! | maybe N | N maybe | N, maybe
perhaps N | probably N | N probably | possibly N | I guess N | N I guess | N I think | I think N | not N | not N but 7
7, not N | N is wrong | N is incorrect | N wrong | N incorrect | N false | wrong: N | incorrect: N | N isn't right
The answer is not N | The answer isn't N | N is not the answer | N cannot be right | N (wrong) | N (not sure)
N, but 7 is also possible | N = 7 | 7 = N | N ≠ 7 | 7 + N | N + 7 | N minus 1 | N plus tax | N plus 7 | N times 7
7 x N | N divided by two | N multiplied by two | N by six | N squared | N cubed | N^2 | N² | N factorial | \sqrt{N}
N\pi | Npi | N pi | Nx | N x | xN | x^N | N y | log N | sin N | -N | minus N | negative N | a loss of N | N below zero
N/0 | N//1 | N dozen | N dozens | N dozen eggs | N hundred | N hundreds | N thousand | N thousands | N million
N millions | N billion | Nk | NK | NM | N score | N pairs | N pair | N fewer | N fewer apples | N halves | N thirds
N tenths | N hundredths | N half | N and a half | N and a quarter | N 1/2 | N½ | N point five | N point 5 | N dot five
N six | N twenty | N twos | N zeros | N r2 | N R 2 | N remainder 2 | N with 2 left over | N mod 7 | N ft 3 in
N feet 7 inches | N h 30 min | N:30 | N of 7 | N out of 7 | N in 7 | N per 7 | N short of ten | N shy of ten | N nor six
N versus six | N through nine | N choose two | N base two | N et al | N%% | N% off ten | N % 7 | .N | 0.0N | N0 | N.5
N,000 | N e3 | more than N eggs | She has not N | She has at least N eggs | She may have N eggs | if N
N unless it rains | N except one | N ish | N-ish | N ± 1 | \pm N | N \pm 1 | N eggs or 7 eggs | N eggs? | N eggs (maybe)
N eggs minus one | N and change | N something | Nish | N-odd | N odd | N, give or take | N tops | N or thereabouts
N eggs short | half of N | twice N | double N | a third of N | one of N | the square of N | the cube of N
a multiple of N | out of N | N to the power of two | N to the third | N recurring | N percent of twenty
N percent of 20 | N thousandths | Nth | N th | No. N is wrong | Wrong answer: N | Guess: N | Estimate: N | Mistake: N
Error: N | Lower bound: N | Previous answer: N | Rejected: N | The total is hardly N | Nobody has N
Bob thinks the answer is N | N depending on the day | N, unless I am wrong | N (approx.) | N approx. | N approx
≈ N or so | N and one more | N and counting | N lots | N unknown | N undefined | N error | N times itself | N, rounded
N rounded | N rounded up | 1. N | (a) 7 (b) N | N: 7 | 7: N | N = x = 7 | x = N, y = 7 | x = N or x = 7 | x > N | x < N
x \ne N | x ≠ N | (N, 7) | [N, 7] | \{N, 7\} | N.N | N^7 | 7^N | 7N7 | \frac{N}{7} | N\frac{1}{2} | \frac{7}{N} | N\%\%
N\cdot 7 | N \times 7 | 7 \times N | N\%\text{ of }7 | 2(N) | |N| + 1 | N mod | lakh N | N lakh | N crore | N gross
N grand | N mil | N bn | N a.m. or p.m. | N:00 | half past N
"""
"""Another number, several numbers, a bound, a guess, or an answer that is retracted."""


def patterns(text: str) -> list[str]:
    """Return the patterns of a table above, which are separated by `|` and by line ends."""
    return [pattern.strip() for line in text.splitlines() for pattern in line.split(" | ") if pattern.strip()]


def same(number: str) -> list[str]:
    """Return texts that state a number."""
    return [_filled(pattern, number) for pattern in patterns(SAME) if number[0] != "-" or pattern != "+N"]


def other(number: str) -> list[str]:
    """Return texts that contain a number but do not state it."""
    return [_filled(pattern, number) for pattern in patterns(OTHER)]


def _filled(pattern: str, number: str) -> str:
    """Return a pattern with its number in place of N; the N of a word or a currency stays."""
    return re.sub(r"(?<![A-Z])N(?!obody|Z|o\.|eN)", number, pattern)
