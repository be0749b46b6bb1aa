"""Tiny checkpoints as publishers save them."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SENTENCES = ["The capital of Cuba is Havana .", "Which city ? Answer : Havana", "Rome is the capital of Italy ."]


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """As GPT-2's, but without any special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def tiny_checkpoint(folder: Path, pickled: bool = False, shard_size: str = "1GB") -> Path:
    """A BLOOM of a few thousand parameters, as a publisher would have saved it."""
    tokenizer = byte_level_tokenizer()
    config = AutoConfig.for_model("bloom", hidden_size=8, n_layer=2, n_head=2, vocab_size=len(tokenizer))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder, max_shard_size=shard_size)
    if pickled:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return folder
