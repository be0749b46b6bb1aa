"""Tokenizers without a download, and what an encoded record says."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from sentencepieces import (
    SENTENCES,
)

BYTES = {character: byte for byte, character in bytes_to_unicode().items()}


def byte_level(folder: Path, trim: bool = True, prefix: bool = False) -> PreTrainedTokenizerFast:
    """As GPT-2's, whose one special token begins and ends a text, and is put nowhere by the tokenizer itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(SENTENCES * 20, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end)


def said(tokenizer, token: int) -> bytes:
    """The bytes that a token of SentencePiece's or GPT-2's stands for."""
    piece = tokenizer.convert_ids_to_tokens(token)
    if piece.startswith("<0x"):
        return bytes([int(piece[1:-1], 16)])
    if token in tokenizer.all_special_ids:
        return piece.encode()
    if "▁" in tokenizer.get_vocab():
        return piece.replace("▁", " ").encode()
    return bytes(BYTES[character] for character in piece)
