"""The tokenizer: byte-level BPE over generated text, digits one by one so that sums can be carried out."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.builtin_model.documents import document

SPECIAL = ["<|pad|>", "<|bos|>", "<|eos|>", "<|system|>", "<|user|>", "<|mask|>", "<|assistant|>", "<|end|>"]
"""Their ids are their places."""


def train_tokenizer(path: Path, vocab_size: int = 1600, documents: int = 30_000, seed: int = 7) -> Tokenizer:
    """Trains on `documents` generated documents and writes tokenizer.json to `path`."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(documents, seed), trainer)
    tokenizer.save(str(path))
    return tokenizer


def _texts(documents: int, seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    for _ in range(documents):
        for part in document(rng):
            text = part.text
            for token in SPECIAL:
                text = text.replace(token, "\n")
            yield text
