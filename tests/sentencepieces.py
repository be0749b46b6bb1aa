"""A tiny SentencePiece tokenizer, trained here: as Llama 2's, in Python and in Rust."""

from pathlib import Path

import sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import LlamaTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

CAPITALS = {
    "Portugal": "Lisbon",
    "Spain": "Madrid",
    "Cuba": "Havana",
    "Peru": "Lima",
    "Italy": "Rome",
    "Chad": "N'Djamena",
}
SENTENCES = [f"The capital of {country} is {capital}." for country, capital in CAPITALS.items()]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def sentencepiece_model(folder: Path) -> Path:
    """Byte-pair encoding with a space before every text, and bytes for what it has not seen."""
    text, prefix = folder / "corpus.txt", folder / "tokenizer"
    text.write_text("\n".join(SENTENCES * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(prefix), vocab_size=400, model_type="bpe", byte_fallback=True,
        character_coverage=1.0, normalization_rule_name="identity", remove_extra_whitespaces=False,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return prefix.with_suffix(".model")


def python_tokenizer(model: Path) -> SentencePieceBackend:
    """Without offsets: the sentencepiece library itself."""
    return SentencePieceBackend(vocab_file=str(model), special_tokens_pattern="bos", **SPECIAL)


def pieces_and_merges(model: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    pieces = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
    merges = [
        (piece[:k], piece[k:])
        for piece in sorted(pieces, key=lambda piece: -processor.get_score(pieces[piece]))
        for k in range(1, len(piece))
        if piece[:k] in pieces and piece[k:] in pieces and not processor.is_control(pieces[piece])
    ]
    return pieces, merges


def llama_tokenizer(model: Path) -> LlamaTokenizer:
    """The same pieces as transformers has them for Llama 2, which puts <s> before a text."""
    pieces, merges = pieces_and_merges(model)
    return LlamaTokenizer(vocab=pieces, merges=merges, add_bos_token=True, **SPECIAL)


def published_llama_tokenizer(model: Path) -> PreTrainedTokenizerFast:
    """The same as in the file that Llama 2 was published with: a space before every text, also where there is one."""
    pieces, merges = pieces_and_merges(model)
    tokenizer = Tokenizer(models.BPE(pieces, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
