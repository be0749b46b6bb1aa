"""Small adapters, trained as users train them."""

from pathlib import Path

import peft
import torch
from transformers import AutoModelForCausalLM

from edited_checkpoints import edited_weights
from published import tiny_checkpoint


def base_model(folder: Path, kind: str = "llama", seed: int = 0) -> Path:
    """A published model whose maps are far from their small initial values, so that each of them counts."""
    tiny_checkpoint(folder, kind, seed=seed)
    edited_weights(folder, lambda w: [value.mul_(20) for name, value in w.items() if value.ndim == 2])
    return folder


LORA = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
IDS = torch.tensor([[5, 17, 250, 3, 99, 42, 7]])


def trained_adapter(folder: Path, base: Path, config: peft.PeftConfig, rows: int | None = None, steps: int = 4) -> Path:
    """An adapter that was trained for some steps; all of its parameters have moved."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows:
        model.resize_token_embeddings(rows)
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        adapted(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.save_pretrained(folder)
    return folder
