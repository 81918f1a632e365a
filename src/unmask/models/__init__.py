"""Masked diffusion models: any bidirectional transformers backbone behind one forward pass, and
tiny models for a laptop."""

from unmask.models.convert import convert
from unmask.models.denoiser import Denoiser, check_bidirectional
from unmask.models.loading import load_model, save_model
from unmask.models.policy import Policy
from unmask.models.tiny import TinyConfig, char_tokenizer, tiny_denoiser, word_tokenizer

__all__ = [
    "Denoiser",
    "Policy",
    "TinyConfig",
    "char_tokenizer",
    "check_bidirectional",
    "convert",
    "load_model",
    "save_model",
    "tiny_denoiser",
    "word_tokenizer",
]
