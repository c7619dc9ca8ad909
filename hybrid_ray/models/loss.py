"""Cross-entropy from hidden states, at once or in chunks: in a narrow model the logits are the largest activation."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["mean_cross_entropy"]


def _summed(hidden_ND: Tensor, table_VD: Tensor, targets_N: Tensor, vocab_size: int) -> Tensor:
    logits_NV = F.linear(hidden_ND, table_VD)
    if table_VD.shape[0] != vocab_size:
        logits_NV = logits_NV[:, :vocab_size]
    return F.cross_entropy(logits_NV.float(), targets_N, reduction="sum")


def mean_cross_entropy(
    hidden_ND: Tensor, table_VD: Tensor, targets_N: Tensor, *, vocab_size: int, chunks: int = 1
) -> Tensor:
    """Mean cross-entropy in nats per token, computed in fp32 whatever the weights' type.

    Args:
        hidden_ND: the model's final hidden states.
        table_VD: the output table; rows from ``vocab_size`` on are padding and do not count.
        targets_N: token ids.
        chunks: above 1, only one chunk's logits exist at a time. Each chunk is computed again in the backward pass,
            which costs one more product with the output table (2 V D FLOPs per token).
    """
    if chunks == 1:
        return _summed(hidden_ND, table_VD, targets_N, vocab_size) / targets_N.numel()
    parts = zip(hidden_ND.chunk(chunks), targets_N.chunk(chunks), strict=True)
    if torch.is_grad_enabled():
        losses = [
            checkpoint(_summed, part_ND, table_VD, part_N, vocab_size, use_reentrant=False, preserve_rng_state=False)
            for part_ND, part_N in parts
        ]
    else:
        losses = [_summed(part_ND, table_VD, part_N, vocab_size) for part_ND, part_N in parts]
    return torch.stack(losses).sum() / targets_N.numel()
