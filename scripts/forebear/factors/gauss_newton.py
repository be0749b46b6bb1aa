"""The exact Gauss-Newton matrix of a stage's mean loss, as a product with vectors.

    H = (1/N) Σ_z Σ_t J_ztᵀ (diag(p_zt) − p_zt p_ztᵀ) J_zt

over the N sequences z and their targets t; J_zt is the Jacobian of the logits with
respect to the tracked blocks, p_zt the model's distribution (Schraudolph 2002; Martens
2020, arXiv 1412.1193, section 8). These are the units of Λ in `kronecker`, of which H is
the expectation over labels drawn from the model; here nothing is drawn and no block is
assumed independent of another.

A perturbation V of a linear map acts on the logits as V a added to the map's output, so
J_zt is the Jacobian with respect to the outputs times the activations, and neither the
parameters nor their graph are touched.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from forebear.data.batches import IGNORED, Batch, batches
from forebear.data.sequences import Example
from forebear.gradients.blocks import Block
from forebear.gradients.capture import recorded, with_one
from forebear.models.heads import position_logits


class GaussNewton:
    """H of one data set at one model; calling it multiplies vectors, [Q, P] → [Q, P].

    P counts the parameters of the blocks, one after the other, each row-major; see
    `pack` and `unpack`.
    """

    def __init__(self, model: PreTrainedModel, blocks: Sequence[Block], examples: Sequence[Example], batch_tokens: int):
        self.model, self.blocks, self.examples = model, list(blocks), list(examples)
        self._batch_tokens = batch_tokens
        self._batches = batches(examples, batch_tokens)

    def __call__(self, vectors: Tensor) -> Tensor:
        """H v of every row, one pass over the sequences for all of them."""
        directions = unpack(vectors, self.blocks)
        products = {name: torch.zeros_like(direction) for name, direction in directions.items()}
        for batch in self._batches:
            _add_products(self.model, self.blocks, batch, directions, products)
        return pack(products, self.blocks) / len(self.examples)

    def samples(self, sequences: int, generator: torch.Generator) -> list["GaussNewton"]:
        """A random partition into data sets of about `sequences` each, every one with its own mean loss."""
        order = torch.randperm(len(self.examples), generator=generator)
        parts = order.chunk(max(1, round(len(order) / sequences)))
        return [
            GaussNewton(self.model, self.blocks, [self.examples[i] for i in part.tolist()], self._batch_tokens)
            for part in parts
        ]


def pack(vectors: Mapping[str, Tensor], blocks: Sequence[Block]) -> Tensor:
    """block → [Q, O, I] as one matrix [Q, P]."""
    return torch.cat([vectors[block.name].flatten(1) for block in blocks], 1)


def unpack(vectors: Tensor, blocks: Sequence[Block]) -> dict[str, Tensor]:
    """The inverse of `pack`: [Q, P] as block → [Q, O, I]."""
    parts = vectors.split([block.shape[0] * block.shape[1] for block in blocks], 1)
    return {block.name: part.unflatten(1, block.shape) for block, part in zip(blocks, parts, strict=True)}


def _add_products(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    batch: Batch,
    directions: Mapping[str, Tensor],
    products: Mapping[str, Tensor],
) -> None:
    """Add Σ_zt Jᵀ (diag(p) − p pᵀ) J v of a batch to `products`, for every v of `directions`.

    The product J v is read off Jᵀ u, which is linear in u: its derivative with respect to
    u in the direction v (a backward pass through the backward pass). The graphs of the
    logits and of Jᵀ u are made once and serve all vectors.
    """
    batch = batch.to(model.device)
    bias = {block.module: block.bias for block in blocks}
    blocks_of = {module: [block for block in blocks if block.module == module] for module in bias}
    # Fused attention kernels cannot be differentiated twice.
    with recorded(model, list(bias)) as uses, torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        logits = position_logits(model, batch.ids)[batch.labels != IGNORED]
        used = [(module, use) for module in bias for use in uses[module]]
        maps = [use.output for _, use in used]
        cotangent = torch.zeros_like(logits, requires_grad=True)
        pulled_back = torch.autograd.grad(logits, maps, cotangent, create_graph=True, allow_unused=True)
    reached = [k for k, gradient in enumerate(pulled_back) if gradient is not None and gradient.requires_grad]
    pulled_back, maps, used = ([part[k] for k in reached] for part in (pulled_back, maps, used))
    activations = [with_one(use.inputs) if bias[module] else use.inputs for module, use in used]
    probabilities = logits.detach().softmax(-1)
    for k in range(len(next(iter(directions.values())))):
        tangents = [torch.zeros_like(gradient) for gradient in pulled_back]
        for tangent, a, (module, _) in zip(tangents, activations, used, strict=True):
            for block in blocks_of[module]:
                tangent[..., block.rows] = a @ directions[block.name][k].T
        (moved,) = torch.autograd.grad(pulled_back, cotangent, tangents, retain_graph=True)
        moved = probabilities * (moved - (probabilities * moved).sum(-1, keepdim=True))
        gradients = torch.autograd.grad(logits, maps, moved, retain_graph=True)
        for gradient, a, (module, _) in zip(gradients, activations, used, strict=True):
            for block in blocks_of[module]:
                g = gradient[..., block.rows].flatten(0, -2)
                products[block.name][k].addmm_(g.T, a.flatten(0, -2))
