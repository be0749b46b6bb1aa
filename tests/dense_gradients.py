"""Per-sequence gradients as whole matrices, which the engine never forms."""

import torch
from torch import Tensor

from forebear.gradients.blocks import Block
from forebear.gradients.capture import Captured


def sequence_gradients(captured: Captured, block: Block) -> Tensor:
    """The gradient of every sequence's loss, [B, O, I]."""
    a, g = captured.block(block)
    return torch.bmm(g.transpose(1, 2), a)
