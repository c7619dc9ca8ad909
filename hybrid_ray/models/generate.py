"""Samples text from a model, one token at a time: simple rather than fast."""

import torch
from torch import Tensor

from hybrid_ray.models.gpt2 import GPT2

__all__ = ["generate"]


@torch.no_grad()
def generate(
    model: GPT2,
    tokens_BT: Tensor,
    *,
    new_tokens: int,
    temperature: float = 0.8,
    top_k: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Extend each row of ``tokens_BT`` by ``new_tokens`` sampled tokens. Returns int64 on the model's device.

    Sampling has its own random generator, so a sample taken during training does not change the training.

    Args:
        tokens_BT: the prompt, at least one token per row. Only the last tokens that fit the model's context are used.
        temperature: divides the logits; 0 always takes the likeliest token.
        top_k: sample from the k likeliest tokens only.
    """
    device = model.wte.weight.device
    draw = torch.Generator(device).manual_seed(seed)
    was_training = model.training
    model.eval()
    tokens_BT = tokens_BT.to(device)
    for _ in range(new_tokens):
        logits_BV = model.logits(tokens_BT[:, -model.shape.context :])[:, -1].float()
        tokens_BT = torch.cat([tokens_BT, _next(logits_BV, temperature, top_k, draw)], dim=1)
    model.train(was_training)
    return tokens_BT


def _next(logits_BV: Tensor, temperature: float, top_k: int | None, draw: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits_BV.argmax(dim=-1, keepdim=True)
    if top_k is not None and top_k < logits_BV.shape[-1]:
        least_B1 = logits_BV.topk(top_k).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))
    return torch.multinomial(torch.softmax(logits_BV / temperature, dim=-1), 1, generator=draw)
