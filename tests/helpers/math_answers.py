"""Answers to gold answers of MATH's kind, hand-made: "gold | answer" on each line."""

WRONG = r"""
60^\circ | 60 \text{ radians}
60^\circ | 60\text{ rad}
\frac{5\pi}{6} | \frac{5\pi}{6}^\circ
\frac{5\pi}{6} | \frac{5\pi}{6} \text{ degrees}
17 | 17 \approx 18
17 | 17 \text{ hmm}
17 | 17\,dx
[-4,7) | \{x : -4 < x < 7\}
[-4,7) | 7 \ge x \ge -4
[-4,7) | x \ge -4 \text{ or } x < 7
[-4,7) | 7 > x > -4
x \in [-4,7) | y \in [-4,7)
x \in [-4,7) | X \in [-4,7)
x \in [-4,7) | [-4,7]
(-\infty,-1)\cup(5,\infty) | \{x : x>-1 \text{ or } x>5\}
(-\infty,-1)\cup(5,\infty) | (-\infty,-1], [5,\infty)
(2,-3) | \text{Vertex: } (-3,2)
(2,-3) | \text{not the vertex } (2,-3)
(2,-3) | x = -3;\; y = 2
\begin{pmatrix} 3 \\ -1 \end{pmatrix} | \begin{pmatrix} -1 \\[4pt] 3 \end{pmatrix}
\text{even} | \text{It is odd}
\text{even} | \text{It is not even}
p - q | P - Q
R^2-r^2 | r^2-R^2
(8,-2) | [8,-2]
(8,-2) | \{8,-2\}
(2,\infty) | \{2,\infty\}
x=7 | z=7
a=7 | b=7
\theta=7 | x=7
\sqrt{51} | \sqrt{51}\text{ is wrong}
\sqrt{51} | \sqrt{51} \text{ (not sure)}
\sqrt{51} | \sqrt{51} \text{ is not the answer}
\sqrt{51} | \approx 7.14
\sqrt{51} | 7.141428
\sqrt{51} | 7.1414284285
\frac{\pi}{3} | 1.0472
\frac{\pi}{3} | 1.047197551
e | 2.71828
e | 2.718281828459045
\sqrt{2} | 1.41421356237309
10^{-20} | 0
10^{-20} | 10^{-21}
10^{-20} | 0.0
\frac{1}{3} | 0.33
\frac{2}{3} | 0.6667
\frac{1}{2^{98}} | -\frac{1}{2^{98}}
\frac{1}{7^{30}} | \frac{1}{7^{31}}
2^{-40} | 2^{-41}
(0,1) | \{0,1\}
(0,1) | (1,0)
[0,1] | (0,1)
(-\infty,3] | (-\infty,3)
3, 5, 7 | (7,5,3)
3, 5, 7 | [3,5,7]
\{1,2\} | [1,2]
\{1,2\} | (1,2)
2\sqrt5 | 2\sqrt5 \text{ or } 3
2\sqrt5 | 3 or 2\sqrt5
x^2+1 | x^2+1=0
6+9i | 6-9i
6+9i | 6+9j
\frac{\pi}{2} | 90^\circ
\text{east} | West
\text{even} | uneven
\text{even} | not even
\text{even} | even or odd
\text{even} | odd, not even
\text{Evelyn} | Evelyn and Navin
\text{Evelyn} | Evelyn?
\text{Evelyn} | maybe Evelyn
\text{Evelyn} | Evelyn is not fastest
\text{Evelyn} | Navin is faster than Evelyn
\text{(B)} | B or C
\text{(B)} | not B
\text{(B)} | (B) is wrong
\text{(B)} | (A) and (B)
\text{(B)} | Bad
\text{June 20} | June 21
\text{June 20} | July 20
\text{June 20} | June 20 or 21
\text{June 20} | 20
14k | 14000
2k | 2000
6p | 6
\sqrt{51} | \sqrt{51}?
\sqrt{51} | not \sqrt{51}
\sqrt{51} | maybe \sqrt{51}
\sqrt{51} | at least \sqrt{51}
\sqrt{51} | more than \sqrt{51}
\sqrt{51} | > \sqrt{51}
\sqrt{51} | \geq \sqrt{51}
\sqrt{51} | \pm\sqrt{51}
\sqrt{51} | x > \sqrt{51}
\sqrt{51} | x \ne \sqrt{51}
\sqrt{51} | \sqrt{51} \text{ dozen}
\sqrt{51} | 7 = \sqrt{51}
\sqrt{51} | \sqrt{51} = 7
\sqrt{51} | \sqrt{51}, \sqrt{52}
\sqrt{51} | \sqrt{51}+0.0000000001
\sqrt{51} | x=\sqrt{51}, y=2
5\sqrt{2} | 5\sqrt{2}\text{ thousand}
2516_8 | (2516)_7
2516_8 | 2516_{\text{nine}}
2516_8 | 25.16
y = 2x + 3 | x = 2y + 3
y = 2x + 3 | z = 2x+3
y = 2x+3 | y \ne 2x+3
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | (1,2)
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} | [[1,2],[4,3]]
x \le 3 | x \ge 3
x \le 3 | (-\infty,3)
(3,4] | 3 < x < 4
\frac{1}{2} | \frac{1}{2} x
\frac{1}{2} | 1/2 or 1/3
100 | 100!
0 | \text{none}
0 | \emptyset
-2 | 2
A | a
A | B
12-p | 12
12\pi | 12
1 \pm \sqrt{19} | 1 + \sqrt{19}
x^2-y^2 | X^2-Y^2
ab | AB
\frac{a}{b} | \frac{A}{B}
4:30 | 4.30
4:30 | 4/30
4:30 | 4:30 = 77
10,000 | 10.000
\$18.90 | 18.9 million
3 | \boxed{3} or 4
5 | 5 \text{ cm or } 5 \text{ in or } 6
8\text{ cm} | 8 dozen
"""
"""Another answer, or none."""

RIGHT = r"""
\frac{7}{12} | {7\over12}
\frac{7}{12} | \nicefrac{7}{12}
\frac{7}{12} | \left.\frac{7}{12}\right.
\frac{7}{12} | \Bigg(\frac{7}{12}\Bigg)
\frac{7}{12} | \textcolor{red}{\frac{7}{12}}
\frac{7}{12} | \frac{7}{12}\hspace{1cm}
\frac{7}{12} | \therefore \frac{7}{12}
\frac{7}{12} | 7 \div 12
3\sqrt{7} | \bigl(3\sqrt{7}\bigr)
3\sqrt{7} | \textcolor{red}{3\sqrt{7}}
3\sqrt{7} | 3\sqrt{7} \approx 7.94
17.3 | 17.3 \approx 17
[-4,7) | 7 > x \ge -4
[-4,7) | \{x \mid -4 \le x < 7\}
[-4,7) | \{x \in \mathbb{R} : -4 \le x < 7\}
x \in [-4,7) | -4 \le x < 7
x \in [-4,7) | x\in[-4,7)
x \in [-4,7) | [-4,7)
(-\infty,-1)\cup(5,\infty) | -1 > x \text{ or } 5 < x
(-\infty,-1)\cup(5,\infty) | \{x | x < -1 \text{ or } x > 5\}
(-\infty,-1)\cup(5,\infty) | (-\infty, -1) \text{ or } (5, \infty)
(-\infty,-1)\cup(5,\infty) | (-\infty, -1), (5, \infty)
(-\infty,-1)\cup(5,\infty) | (-\infty,-1) U (5,\infty)
(2,-3) | A(2,-3)
(2,-3) | \text{Vertex: } (2,-3)
(2,-3) | \text{center } (2,-3)
(2,-3) | The point is $(2, -3)$.
(2,-3) | x=2;\; y=-3
\begin{pmatrix} 3 \\ -1 \end{pmatrix} | \begin{pmatrix} 3 \\[4pt] -1 \end{pmatrix}
\begin{pmatrix} 3 \\ -1 \end{pmatrix} | \begin{pmatrix} 3 \cr -1 \end{pmatrix}
\text{even} | \text{It is even}
\frac{1}{3} | 0.\overline{3}
\frac{1}{3} | 0.\bar{3}
\text{October 30} | October 30
\text{October 30} | 30 October
\text{October 30} | October 30th
(3,4] | 3 < x \le 4
(3,4] | x \in (3,4]
(3,4] | (3, 4]
2516_8 | (2516)_8
2516_8 | 2516_{eight}
2516_8 | 2516 base 8
2516_8 | 2516 \text{ base } 8
\frac{1}{2} | \approx 0.5
3,5 | 5 \text{ or } 3
3,5 | 3 \text{ and } 5
3,5 | x = 3, 5
3,5 | x = 3 \text{ or } x = 5
3,5 | x=3, x=5
\{1,2\} | 1,2
\{1,2\} | \{2,1\}
6+9i | 9i+6
6+9i | 6+9\mathrm{i}
6+9i | z = 6+9i
90^\circ | 90
90 | 90^\circ
90^\circ | 90\degree
90^\circ | 90°
90^\circ | 90 degrees
y=2x+3 | 2x+3=y
y=2x+3 | y-3=2x
y=2x+3 | g(x) = 2x+3
\text{odd} | The function is odd
\text{odd} | odd
\text{odd} | Odd.
\text{odd} | \mathrm{odd}
\text{odd} | odd function
x^2 | x²
2\sqrt{5} | 2 sqrt(5)
2\sqrt{5} | 2*sqrt(5)
2\sqrt{5} | 2 \cdot \sqrt{5}
2\sqrt{5} | \sqrt{20}\text{ units}
2\sqrt{5} | 2\sqrt{5} units
2\sqrt{5} | 2\sqrt{5} cm
2\sqrt{5} | 2\sqrt{5} \text{ cm}^2
2\sqrt{5} | \text{The length is } 2\sqrt{5}
2\sqrt{5} | The length is 2\sqrt{5}
2\sqrt{5} | AB = 2\sqrt{5}
2\sqrt{5} | \overline{AB} = 2\sqrt{5}
2\sqrt{5} | d = 2\sqrt5
2\sqrt{5} | x = \sqrt{20} = 2\sqrt{5}
2\sqrt{5} | \mathbf{2\sqrt{5}}
2\sqrt{5} | {2\sqrt{5}}
2\sqrt{5} | \left(2\sqrt{5}\right)
2\sqrt{5} | 2 \sqrt{5} \\
2\sqrt{5} | 2\sqrt{5},
2\sqrt{5} | **2\sqrt{5}**
\frac{14}{3} | {\frac{14}{3}}
\frac{14}{3} | \cfrac{14}{3}
\frac{14}{3} | 14/3
\frac{14}{3} | 4\frac{2}{3}
\frac{14}{3} | \frac{28}{6}
\frac{14}{3} | \frac{14}{3} \approx 4.67
\infty | ∞
(-\infty,2) | (-∞,2)
(-\infty,2) | x < 2
(-\infty,2) \cup (3,\infty) | x < 2 or x > 3
(-\infty,2] \cup [3,\infty) | x \le 2 \text{ or } x \ge 3
\pi | pi
x=5 | 5
x=5 | x = 5
x=5 | x=5.0
\sqrt{51} | \boxed{\sqrt{51}}
\sqrt{51} | \text{Answer: }\sqrt{51}
\sqrt{51} | \displaystyle\sqrt{51}
\sqrt{51} | 51^{0.5}
\sqrt{51} | \sqrt{51} \text{ (exact)}
10^{-20} | 0.00000000000000000001
10^{-20} | \frac{1}{10^{20}}
2^{10} | 1024
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{bmatrix} 1 \\ 2 \end{bmatrix}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{pmatrix} 1 \\ 2.0 \end{pmatrix}
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} | [[1, 2], [3, 4]]
(1,2) | 1, 2
(1,2) | (x,y) = (1,2)
(1,2) | \left( 1, 2 \right)
(1,2) | (1; 2)
(1,2) | x = 1, y = 2
(1,\frac12) | (1, 0.5)
\frac{x+1}{x-1} | \frac{x+1}{x-1}, x \neq 1
\frac{x+1}{x-1} | \frac{x+1}{x-1} \text{ where } x \ne 1
\text{(B)} | The answer is (B)
\text{(B)} | B.
\text{(B)} | (B) 15
\text{(B)} | Choice B
A | \text{A}
36 \text{ inches} | 36
p-q | p + (-q)
R^2-r^2 | (R-r)(R+r)
8n^2 + 4n + 1 | 8 n^{2} + 4 n + 1
4:30 | 4:30 \text{ p.m.}
\$18.90 | \$18.9
\$18.90 | 18.90 dollars
x^2+2x+1 | x^{2} + 2\,x + 1
1 \pm \sqrt{19} | 1-\sqrt{19},\ 1+\sqrt{19}
1 \pm \sqrt{19} | 1 \pm \sqrt{19}
1 \pm \sqrt{19} | x = 1+\sqrt{19}, x = 1 - \sqrt{19}
3R^2 | 3 R^{2}
\frac{\sqrt{3}}{3} | \frac{1}{\sqrt{3}}
\frac{\sqrt{3}}{3} | \frac{\sqrt 3}{3}
0.5 | 50\%
(-\infty, -1) \cup (-1, \infty) | \mathbb{R} \setminus \{-1\}
[0,\infty) | x \geq 0
\ln 2 | \log_e 2
\ln 2 | ln 2
\cot x | \frac{\cos x}{\sin x}
\cot x | cot x
e^{2x} | exp(2x)
"""
"""The gold answer in another form."""


def pairs(table: str) -> list[tuple[str, str]]:
    """The golds and answers of a table."""
    lines = [line.partition(" | ") for line in table.strip().splitlines()]
    return [(gold, answer) for gold, _, answer in lines]
