"""Tests of encoding, batching by length, seeds, decoding and refused prompts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tests.helpers.messages import raises
from tests.helpers.minis import mini_checkpoint
from tests.helpers.rollouts import generate
from unmask.core.config import SamplerConfig
from unmask.core.errors import DataError
from unmask.core.records import Needs
from unmask.models import char_tokenizer
from unmask.models.families import FAMILIES
from unmask.models.tokenizers import complete_tokenizer
from unmask.sampling.encoding import decode, encode_batch, row_seeds, turn_end
from unmask.tasks.sudoku import Sudoku

L = 6
PROMPTS = ["12=", "1234=", "0=", "12=", "111111=", "4321=", "3"]
SAMPLER = SamplerConfig(max_completion_length=L, num_steps=3, order="random", top_p=0.95)
SEED = torch.arange(50, 57)


@pytest.fixture
def tokenizer():
    return char_tokenizer(Sudoku().alphabet)


def assert_same_rows(one, other, atol=1e-5):
    for name in ("tokens", "unmask_step", "seed", "selected_step", "one_step_tokens"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for name in ("logprob", "entropy"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=atol)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7])
def test_the_batch_size_does_not_change_results_or_their_order(lively, tokenizer, batch_size):
    needs = Needs(greedy=True, selection=("entropy_topk", 2))
    whole = generate(lively, tokenizer, PROMPTS, SAMPLER, SEED, needs=needs)
    parts = generate(lively, tokenizer, PROMPTS, SAMPLER, SEED, needs=needs, batch_size=batch_size)
    assert len(whole.tokens.unique(dim=0)) > 5
    assert_same_rows(parts, whole)
    for path in (whole, parts):
        prompts = [ids[mask] for ids, mask in zip(path.prompt_ids, path.prompt_mask, strict=True)]
        assert [tokenizer.decode(ids) for ids in prompts] == PROMPTS


def test_another_seed_gives_other_completions(lively, tokenizer):
    one, other = (generate(lively, tokenizer, PROMPTS, SAMPLER, seed).tokens for seed in (SEED, SEED + 100))
    assert (one != other).any(-1).all()


def test_rows_of_similar_prompt_length_share_a_batch(lively, tokenizer, monkeypatch):
    widths = []

    def watch(ids, mask, *rest):
        widths.append((ids.shape, 0 if mask is None else int((~mask).sum())))
        return forward(ids, mask, *rest)

    forward = lively.forward
    monkeypatch.setattr(lively, "forward", watch)
    generate(
        lively,
        tokenizer,
        ["1" * 12, "2", "3" * 12, "4"],
        SAMPLER.model_copy(update={"num_steps": 1}),
        SEED[:4],
        batch_size=2,
    )
    assert widths == [((2, 1 + L), 0), ((2, 12 + L), 0)]


def test_an_observer_sees_every_step_of_every_batch(lively, tokenizer):
    seen = []
    generate(lively, tokenizer, PROMPTS, SAMPLER, SEED, batch_size=4, observe=seen.append)
    assert [(snapshot.step, len(snapshot.tokens)) for snapshot in seen] == [(k, n) for n in (4, 3) for k in range(3)]


def test_the_model_is_in_evaluation_mode_only_during_the_rollout(lively, tokenizer):
    modes = []
    lively.train()
    generate(lively, tokenizer, PROMPTS, SAMPLER, SEED, observe=lambda _: modes.append(lively.training))
    assert modes == [False] * 3
    assert lively.training
    lively.eval()
    generate(lively, tokenizer, PROMPTS, SAMPLER, SEED)
    assert not lively.training


def test_an_empty_prompt_is_allowed(lively, tokenizer):
    # The row is the same if all prompts are empty and if one of several is.
    alone = generate(lively, tokenizer, ["", ""], SAMPLER, SEED[:2])
    assert alone.prompt_ids.shape == (2, 0)
    beside = generate(lively, tokenizer, ["12=", ""], SAMPLER, SEED[:2])
    assert torch.equal(beside.tokens[1], alone.tokens[1])
    torch.testing.assert_close(beside.logprob[1], alone.logprob[1], rtol=0, atol=1e-5)


def test_chat_messages_go_through_the_tokenizers_template(lively, tokenizer):
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}={% endfor %}{% if add_generation_prompt %}0{% endif %}"
    )
    messages = [
        {"role": "user", "content": "12"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "4"},
    ]
    path = generate(lively, tokenizer, [messages], SAMPLER, SEED[:1])
    assert tokenizer.decode(path.prompt_ids[0]) == "12=3=4=0"


ENDS_TURNS = (
    "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}<eot>{% else %}={% endif %}{% endfor %}"
    "{% if add_generation_prompt %}0{% endif %}"
)


@pytest.fixture
def chat(tokenizer):
    """Return a tokenizer whose template ends the assistant's turns with a special token."""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<eot>"]})
    tokenizer.chat_template = ENDS_TURNS
    return tokenizer


def encoded(tokenizer, messages):
    ids, _ = encode_batch(tokenizer, [messages], 0)
    return tokenizer.decode(ids[0])


def test_a_conversation_that_ends_with_the_assistant_is_continued(chat):
    asked = {"role": "user", "content": "12"}
    assert encoded(chat, [asked]) == "12=0"
    assert encoded(chat, [asked, {"role": "assistant", "content": "3"}]) == "12=3"
    assert encoded(chat, [asked, {"role": "assistant", "content": "3"}, asked]) == "12=3<eot>12=0"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "user", "content": [{"type": "text", "text": "12"}]}], "message 1 .* list of parts"),
        (
            [{"role": "user", "content": "1"}, {"role": "assistant"}],
            'message 2 of the prompt has no text under "content"',
        ),
        ([{"content": "12"}], 'message 1 of the prompt has no "role"'),
        (["12"], "message 1 of the prompt is '12'"),
        ([], "an empty list of chat messages"),
    ],
)
def test_invalid_messages_are_named(chat, messages, expected):
    with pytest.raises(DataError, match=expected):
        encode_batch(chat, [messages], 0)


def test_text_is_cut_at_the_end_of_the_turn(chat, tokenizer):
    ids = chat("42<eot>42<eos>").input_ids
    assert decode(chat, torch.tensor([ids, ids[:2] + [ids[-1]] * 4])) == ["42", "42"]
    chat.chat_template = None
    assert decode(chat, torch.tensor([ids])) == ["4242"], "without a template no token ends a turn"


def test_length_and_text_agree_on_the_end_of_the_turn(lively, chat):
    path = generate(lively, chat, ["12="], SAMPLER, SEED[:1])
    ids = chat("42<eot>4<eos>2").input_ids
    path = replace(path, tokens=torch.tensor([ids]))
    assert path.turn_end_id == chat.convert_tokens_to_ids("<eot>")
    assert path.is_text().tolist() == [[True, True, False, False, False, False]]
    assert decode(chat, path.tokens) == ["42"]


@pytest.mark.parametrize(("family", "token"), [("llada", "<|eot_id|>"), ("dream", "<|im_end|>")])
def test_the_end_of_a_turn_is_found_in_the_released_templates(tmp_path, family, token):
    folder = mini_checkpoint(family, tmp_path / "mini")
    tokenizer = complete_tokenizer(folder, FAMILIES[family], json.loads((folder / "config.json").read_text()))
    assert turn_end(tokenizer) == tokenizer.convert_tokens_to_ids(token) != tokenizer.eos_token_id
    ids = tokenizer(f"42{token}42<|endoftext|>", add_special_tokens=False).input_ids
    assert decode(tokenizer, torch.tensor([ids])) == ["42"]
    prompt = [{"role": "user", "content": "6*7?"}, {"role": "assistant", "content": "The answer is "}]
    assert encoded(tokenizer, prompt) == encoded(tokenizer, prompt[:1]) + "The answer is "
    for blank in ("", " ", "\n\n"):
        empty = {"role": "assistant", "content": blank}
        assert encoded(tokenizer, [prompt[0], empty]) == encoded(tokenizer, prompt[:1]), "an empty turn is begun as any"
        assert encoded(tokenizer, [prompt[0], empty, empty]) == encoded(tokenizer, prompt[:1])


def test_a_character_that_the_tokenizer_does_not_know_is_a_data_error(lively, tokenizer):
    with raises(
        DataError, "cannot encode the prompt '12+7='", "The model may have been made for another task", snapshot=False
    ):
        generate(lively, tokenizer, ["12=", "12+7="], SAMPLER, SEED[:2])


def test_messages_for_a_tokenizer_without_a_template_are_a_data_error(lively, tokenizer):
    with raises(DataError, "no chat template", "format=plain"):
        generate(lively, tokenizer, [[{"role": "user", "content": "12"}]], SAMPLER, SEED[:1])


def test_a_prompt_is_refused_exactly_if_it_does_not_fit(lively, tokenizer):
    room = lively.backbone.config.max_position_embeddings
    assert room == 64
    path = generate(lively, tokenizer, ["1" * (room - L)], SAMPLER, SEED[:1])
    assert path.prompt_ids.shape == (1, room - L)
    with raises(DataError, "prompt of 59 tokens and max_completion_length = 6", "64 positions"):
        generate(lively, tokenizer, ["12=", "1" * (room - L + 1)], SAMPLER, SEED[:2])


def test_prompts_are_padded_on_the_left_to_the_longest(tokenizer):
    ids, mask = encode_batch(tokenizer, ["1", "123"], pad_id=9)
    one, two, three = tokenizer("123").input_ids
    assert ids.tolist() == [[9, 9, one], [one, two, three]]
    assert mask.tolist() == [[False, False, True], [True, True, True]]
    assert (ids.dtype, mask.dtype) == (torch.int64, torch.bool)


def test_text_is_cut_at_the_first_eos_and_special_tokens_are_left_out(tokenizer):
    one, two, three = tokenizer("123").input_ids
    rows = [[one, two, 2, three, 2], [2, one, one, one, one], [one, two, three, one, two], [one, 0, two, 2, 1]]
    assert decode(tokenizer, torch.tensor(rows)) == ["12", "", "12312", "12"]


def test_row_seeds_are_drawn_from_the_generator_and_differ():
    seeds = row_seeds(1000, torch.Generator().manual_seed(0))
    assert torch.equal(seeds, row_seeds(1000, torch.Generator().manual_seed(0)))
    assert not torch.equal(seeds, row_seeds(1000, torch.Generator().manual_seed(1)))
    assert len(seeds.unique()) == 1000
    assert (seeds >= 0).all()
    assert seeds.double().mean().item() == pytest.approx(2**61, rel=0.1)
