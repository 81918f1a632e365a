"""Extraction of the answer from a completion, for every task.

The completion may be any text, and the time is linear in its length. A box is the LaTeX command
that marks an answer, as in \\boxed{5}.

`answer_in` returns what a careful reader takes as the answer of a completion: the content of the
last answer tag, or of the box in this tag. If there is no tag, it returns the content of the last
box; if there is no box, the text after "The answer is". Diffusion models often leave a tag or box
open, or lose a brace or a backslash. `answer_in` reads such answers, too. If the answer is
ambiguous, the result is None, or it keeps the words that make it doubtful ("5 or 7"), so that a
task that expects one value rejects it. `tagged_answer` reads only tags, for tasks whose answer is a
program. Both read the part of a completion that `before_end` returns.

docs/answers.md lists the rules and the effect of each on real completions.
"""

from __future__ import annotations

import math
import re
from itertools import islice

from unmask.rewards.grading.boxes import BOX, CLOSE, OPEN, find_boxes, in_formula, without_loose_ends
from unmask.rewards.grading.quantities import begins_with_change

_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]+)?")
_LONGEST_NUMBER = 32
_END = re.compile(
    r"<\|(?:eot_id|endoftext|end_of_text|im_end|end|eom_id|end_of_turn|eos|return|end▁of▁sentence)\|>"
    r"|<｜end▁of▁sentence｜>|</s>|<(?:eos|EOS|end_of_turn|eot)>|\[(?:EOS|eos)\]"
)
"""Tokens that end a turn or a text."""
_THOUGHT_END = re.compile(r"</(?:think|thinking|reasoning|thought)>")
_TAG, _ANY_TAG = re.compile(r"</?answer>"), re.compile(r"</?\w{0,20}>")
_MENTION = re.compile(
    r"[\s\"'`*,.:;…]*(?:(?:and|or|to|with|then|the|closing|opening|tags?|answer|here|your|my|final|it|goes|holds|is|in|"
    r"inside|contains|there|as|asked|requested)\b[\s\"'`*,.:;…]*)*"
)
"""Text between two tags that the completion only mentions, as in "<answer> and </answer>" or
"<answer>...</answer>"."""
_BETWEEN_BOXES = re.compile(r"(?:[\s$,;.&]|\\[()\[\],;: ]|\band\b|\bor\b|\\text\{\s*(?:and|or),?\s*\}|\\quad)*")
"""Text that joins several boxes into one answer."""
_CONTEXT = 60
"""Number of characters on either side of a box that may change its meaning."""
_DOUBT_BEFORE = re.compile(
    r"(?:\bnot|n't(?: be)?|n't equal(?: to)?|\bnever|\bneither|\bnor|\bor|\beither|\bwrong|\bincorrect|\bfalse|\bmaybe|\bperhaps|"
    r"\bpossibly|\bprobably|\bat least|\bat most|\b(?:more|less|fewer|greater|higher|lower|larger|smaller|rather|other) than|"
    r"\bbetween|\bunder|\bover|\bnegative|\bminus|\bguess|"
    r"^\s*(?:about|around|roughly|approximately|nearly|almost|close to|"
    r"(?:half|twice|double|triple)(?: of)?)|\b(?:anything|everything|all) but)(?: is| are| be)?[\s:$(\\\[]*$",
    re.IGNORECASE,
)
_DOUBT_AFTER = re.compile(
    r"[\s$)\\\].,*]*(?:\b(?:or|nor|versus|vs|dozens?|hundreds?|thousands?|millions?|billions?|trillions?|pairs?|scores?|minus|plus|"
    r"divided|multiplied|squared|cubed|maybe|perhaps|wrong|incorrect|false|but|and a half|to [0-9]|"
    r"(?:is|was|are|would be|seems|cannot be|can't be)\s+(?:not|wrong|incorrect|false|impossible|too)|isn't|wasn't|cannot)\b"
    r"|\(?(?:wrong|incorrect|not)\b|\?)",
    re.IGNORECASE,
)
_STATED = re.compile(
    r"(?:\#{4}[^\S\n]*|^[#*\s]{0,9}final answer[*:\s]{0,9}\n\s{0,9}|"
    r"\b(?:final[^\S\n]+|correct[^\S\n]+)?answer(?:\**[^\S\n]*:\**|[^\S\n]+is\b[^\S\n]*:?)[^\S\n]*)([^\n]+)",
    re.IGNORECASE | re.MULTILINE,
)
"""An announcement of the answer in prose, without a tag or box."""
_TAKEN_BACK = re.compile(
    r"\b(?:wait|no|not|actually|but|however|mistake|wrong|incorrect|instead|correction|should)\b", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"[.!](?:\s|$)")


def answer_in(text: str) -> str | None:
    r"""Return what a careful reader takes as the answer of a completion.

    The text after a <think> or <reasoning> block is searched first, then the whole text. Each
    search takes the content of the last answer tag, or of the box in this tag. If there is no tag,
    it takes the last box; if there is no box, the text that "The answer is" or "####" announces.
    Text after an end-of-turn token is ignored.

    Args:
        text: completion of any length.

    Returns:
        The answer as written, without outer white space and without tag or box (see `unwrapped`).
        Adjacent boxes form one answer: "3, 4". Words beside the box or tag that deny or change the
        answer are part of the result. None if there is no answer.

    Example:
        >>> answer_in(r"<answer>It is \boxed{5}.</answer>"), answer_in(r"It is \boxed{5}."), answer_in("5")
        ('5', '5', None)
        >>> answer_in("<answer>\n\\boxed{20\n</answer><|eot_id|>"), answer_in("so\n\\boxed{36>"), answer_in("<answer>7")
        ('20', '36', '7')
        >>> answer_in(r"\boxed{5} dozen"), answer_in("<answer>5</answer> I put it between <answer> and </answer>.")
        ('5 dozen', '5')
    """
    text = before_end(text)
    conclusion = after_thoughts(text)
    if conclusion is not None and (answer := _answer_of(conclusion)) is not None:
        return answer
    return _answer_of(text)


def after_thoughts(text: str) -> str | None:
    """Return the text after the last <think> or <reasoning> block.

    Args:
        text: completion of any length.

    Returns:
        The rest of the text, or None if no such block ends.

    Example:
        >>> after_thoughts("<think>\\n1 + 1?</think>2"), after_thoughts("2")
        ('2', None)
    """
    ends = list(_THOUGHT_END.finditer(text))
    return text[ends[-1].end() :] if ends else None


def before_end(text: str) -> str:
    """Return a completion up to the first token that ends its turn.

    Args:
        text: completion of any length.

    Returns:
        The text before the token. If the text begins with such tokens, they are skipped first.

    Example:
        >>> before_end("18<|eot_id|><|endoftext|>17"), before_end("<|im_end|>18")
        ('18', '18')
    """
    start = 0
    while (token := _END.match(text, start)) is not None:
        start = token.end()
    end = _END.search(text, start)
    return text[start : end.start() if end else len(text)]


def tagged_answer(text: str) -> str | None:
    """Return the content of the last answer tag that is not empty, without outer white space.

    A tag that is never closed extends to the end of the turn. If an opening tag is repeated before
    it is closed, the innermost one counts. Tags that are only mentioned do not count, and neither
    does a closing tag without an opening tag.

    Args:
        text: completion of any length.

    Returns:
        The answer, or None.

    Example:
        >>> tagged_answer("<answer>1</answer> or rather <answer>\\n2 + 3\\n</answer>"), tagged_answer("<answer>unfinished")
        ('2 + 3', 'unfinished')
        >>> tagged_answer("<answer> </answer>"), tagged_answer("7</answer>")
        (None, None)
    """
    text = before_end(text)
    span = _tag_span(text, list(_TAG.finditer(text)))
    return None if span is None else _inside(text, span)


def first_digits(text: str, limit: int) -> str:
    """Return the first ASCII digits of a text as one string, without the characters between them.

    Args:
        text: any text.
        limit: maximum number of digits.

    Returns:
        At most `limit` digits.

    Example:
        >>> first_digits("12|34 / 3412", 6)
        '123434'
    """
    return "".join(islice((c for c in text if c in "0123456789"), limit))


def numbers_in(text: str) -> list[float]:
    """Return the values of all decimal numbers in a text, in order.

    The numbers "+07", "7" and "7.0" have the same value.

    Args:
        text: any text. A sign belongs to the digits directly after it.

    Returns:
        One value for each number. The value of a number of more than 32 characters is NaN, which
        equals nothing.

    Example:
        >>> numbers_in("+07,-02 so about 3.50")
        [7.0, -2.0, 3.5]
    """
    return [float(n) if len(n) <= _LONGEST_NUMBER else math.nan for n in _NUMBER.findall(text)]


def _answer_of(text: str) -> str | None:
    """Return the answer in a part of a completion: its tag, box or announcement."""
    tags = list(_TAG.finditer(text))
    span = _tag_span(text, tags) or _before_lone_close(text, tags)
    if span is None:
        boxed = _boxed_with_doubts(text)
        return boxed if boxed is not None else _stated(text)
    start, end = span
    # The closing tag shows whether a box is left open in the middle of a line.
    answer = (
        _boxed_with_doubts(text[start : end + len(CLOSE)], in_tag=True)
        if BOX.search(text, *span)
        else _inside(text, span)
    )
    return answer and _with_doubts(text, start - len(OPEN), end + len(CLOSE), answer)


def _inside(text: str, span: tuple[int, int]) -> str:
    content = text[slice(*span)]
    return (content if text.startswith(CLOSE, span[1]) else without_loose_ends(content)).strip()


def _tag_span(text: str, tags: list[re.Match[str]]) -> tuple[int, int] | None:
    """Return the span of the content of the last tag that is neither empty nor only mentioned."""
    for index in range(len(tags) - 1, -1, -1):
        if tags[index].group() == CLOSE:
            continue
        following = tags[index + 1] if index + 1 < len(tags) else None
        if following is not None and following.group() == OPEN:
            continue
        span = (tags[index].end(), following.start() if following else len(text))
        if not _MENTION.fullmatch(_inside(text, span)):
            return span
    return None


def _before_lone_close(text: str, tags: list[re.Match[str]]) -> tuple[int, int] | None:
    """Return the span of up to three words before a closing tag that has no opening tag."""
    if not tags or any(tag.group() == OPEN for tag in tags) or BOX.search(text):
        return None
    end = tags[0].start()
    before = text[:end].rstrip()
    start = max([before.rfind("\n") + 1, *(match.end() for match in _ANY_TAG.finditer(before))])
    content = before[start:].strip()
    return (start, end) if 0 < len(content.split()) <= 3 and not _MENTION.fullmatch(content) else None


def _boxed_with_doubts(text: str, in_tag: bool = False) -> str | None:
    """Return the last box and its neighbours, with words that deny or change the answer."""
    boxes = find_boxes(text)
    if not boxes:
        return None
    group = [boxes[-1]]
    while len(group) < len(boxes):
        earlier = boxes[-1 - len(group)]
        if not _BETWEEN_BOXES.fullmatch(text, earlier[1], group[0][0]):
            break
        group.insert(0, earlier)
    if len(group) == 1:
        group = [(*group[0][:2], in_formula(text, *group[0]))]
    parts = list(dict.fromkeys(content for _, _, content in group))
    joined = text[group[0][1] : group[-1][0]]
    answer = (" or " if re.search(r"\bor\b", joined) else ", ").join(parts)
    return _with_doubts(text, group[0][0], group[-1][1], answer, in_tag)


def _with_doubts(text: str, start: int, end: int, answer: str, in_tag: bool = False) -> str:
    """Return an answer together with adjacent words of its line that deny or change the answer."""
    before = text[max(text.rfind("\n", 0, start) + 1, start - _CONTEXT) : start]
    stop = text.find("\n", end)
    after = text[end : min(stop if stop >= 0 else len(text), end + _CONTEXT)]
    if doubt := _DOUBT_BEFORE.search(before):
        answer = f"{doubt.group().strip(' :$([' + chr(92))} {answer}"
    # Prose after a box continues with any words, but a tag holds only the answer.
    if _DOUBT_AFTER.match(after) or (in_tag and begins_with_change(after)):
        answer = f"{answer} {_SENTENCE_END.split(after.partition(CLOSE)[0].strip(' $)' + chr(92)))[0]}"
    return answer


def _stated(text: str) -> str | None:
    """Return the last announced answer, up to the end of its sentence."""
    announcements = list(_STATED.finditer(text))
    if not announcements:
        return None
    statement = _SENTENCE_END.split(announcements[-1][1], maxsplit=1)[0]
    # The prose that follows may retract the announcement.
    if _TAKEN_BACK.search(text, announcements[-1].start(1) + len(statement)):
        return None
    return statement.strip(" *") or None
