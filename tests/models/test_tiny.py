"""Tests of tiny models: tokenizers of characters and of words that round-trip, and weights that follow the seed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from unmask.models import TinyConfig, char_tokenizer, tiny_denoiser, word_tokenizer

ALPHABET = "0123456789+-*/()= abc\nß"


@pytest.fixture(scope="module")
def tokenizer():
    return char_tokenizer(ALPHABET)


def test_special_tokens_come_first_then_the_characters_in_order(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert len(tokenizer) == 3 + len(ALPHABET)
    assert tokenizer.convert_ids_to_tokens(range(3, len(tokenizer))) == sorted(ALPHABET)


@settings(max_examples=50, deadline=None)
@given(text=st.text(ALPHABET, max_size=30))
def test_text_of_the_alphabet_round_trips_with_one_token_per_character(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.batch_decode([ids, [2, 1, 0]], skip_special_tokens=True) == [text, ""]


@settings(max_examples=25, deadline=None)
@given(text=st.text(ALPHABET, max_size=30))
def test_a_saved_tokenizer_gives_the_same_tokens(tmp_path_factory, tokenizer, text):
    folder = tmp_path_factory.getbasetemp() / "saved-char-tokenizer"
    if not folder.exists():
        tokenizer.save_pretrained(folder)
    again = AutoTokenizer.from_pretrained(folder)
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.decode(again(text).input_ids) == text
    assert (again.pad_token_id, again.mask_token_id, again.eos_token_id) == (0, 1, 2)


def test_repeated_characters_of_an_alphabet_count_once():
    assert len(char_tokenizer("aabba")) == 5


WORDS = ("Anna", " has", " 1", " 12", " she", " shells", "s", ".", "\n", " (", " +", "?")


@settings(max_examples=50, deadline=None)
@given(words=st.lists(st.sampled_from(WORDS), max_size=12))
def test_words_round_trip_and_the_longest_one_counts(words):
    tokenizer, text = word_tokenizer(WORDS), "".join(words)
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    # " she" and "s" are never read where " shells" stands, so there are at most as many tokens as words.
    assert len(ids) <= len(words)
    assert tokenizer.convert_ids_to_tokens(tokenizer(" shells has 12.").input_ids) == [" shells", " has", " 12", "."]


def test_words_and_characters_make_the_same_tokenizer_of_an_alphabet(tokenizer):
    assert word_tokenizer(ALPHABET)._tokenizer.to_str() == tokenizer._tokenizer.to_str()


def test_a_saved_tokenizer_of_words_gives_the_same_tokens(tmp_path):
    tokenizer = word_tokenizer(WORDS)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "Anna has 12 shells.\n ("
    assert again(text).input_ids == tokenizer(text).input_ids
    assert again.decode(again(text).input_ids) == text


def test_the_seed_determines_the_weights_without_the_global_generator(tokenizer):
    shape = TinyConfig(num_layers=1, width=8, num_heads=2, max_length=16)
    before = torch.get_rng_state()
    one = tiny_denoiser(shape, tokenizer, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    same, other = tiny_denoiser(shape, tokenizer, seed=1), tiny_denoiser(shape, tokenizer, seed=2)
    torch.set_rng_state(before)
    weight = "backbone.transformer.wte.weight"
    assert torch.equal(one.state_dict()[weight], same.state_dict()[weight])
    assert not torch.equal(one.state_dict()[weight], other.state_dict()[weight])


def test_the_shape_is_as_configured_bidirectional_untied_and_without_dropout(tokenizer):
    denoiser = tiny_denoiser(TinyConfig(num_layers=3, width=24, num_heads=2, max_length=40), tokenizer, seed=0)
    config = denoiser.backbone.config
    assert (config.n_layer, config.n_embd, config.n_head, config.n_positions) == (3, 24, 2, 40)
    assert config.is_causal is False
    assert config.activation_function == "gelu"  # the exact one, which is the fastest on a CPU
    assert denoiser.vocab_size == len(tokenizer)
    embedding, head = denoiser.backbone.get_input_embeddings(), denoiser.backbone.get_output_embeddings()
    assert embedding.weight.data_ptr() != head.weight.data_ptr()
    denoiser.train()
    ids, wanted = torch.tensor([[3, 1, 4]]), torch.tensor([[1]])
    assert torch.equal(denoiser(ids, None, wanted), denoiser(ids, None, wanted))


def test_the_default_tiny_model_has_about_a_hundred_thousand_parameters():
    denoiser = tiny_denoiser(TinyConfig(), char_tokenizer("01234="), seed=0)
    assert sum(p.numel() for p in denoiser.parameters()) == pytest.approx(105_000, rel=0.05)
