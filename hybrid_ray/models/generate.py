"""Text from a model, one token after another: a look at what a run has learned, not a fast decoder."""

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
    """``tokens_BT`` (at least one token) with ``new_tokens`` more on each row, as int64 on the model's device.

    Each token sees at most the model's context. Temperature 0 takes the likeliest token. Draws come from a generator of
    their own, so a sample in the middle of training changes nothing in it.
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
