"""GPT-2: pre-norm transformer, learned positions, tied embeddings. Module names match Hugging Face's GPT-2.

Shape suffixes: B batch, T tokens per sequence, D width, H heads, Q width of a head, V vocabulary, N = B * T.
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hybrid_ray.config import ModelConfig
from hybrid_ray.models.loss import mean_cross_entropy
from hybrid_ray.models.shapes import PRESETS, GPT2Shape

__all__ = ["GPT2", "Attention", "Block", "build_gpt2", "count_parameters"]

INIT_STD = 0.02  # GPT-2's


class Attention(nn.Module):
    """Causal self-attention through PyTorch's fused kernel."""

    def __init__(self, shape: GPT2Shape, dropout: float) -> None:
        super().__init__()
        self.heads = shape.heads
        self.dropout = dropout
        self.c_attn = nn.Linear(shape.width, 3 * shape.width)
        self.c_proj = nn.Linear(shape.width, shape.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        batch, length, width = x_BTD.shape
        qkv = self.c_attn(x_BTD).view(batch, length, 3, self.heads, width // self.heads)
        q_BHTQ, k_BHTQ, v_BHTQ = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        mixed_BHTQ = F.scaled_dot_product_attention(q_BHTQ, k_BHTQ, v_BHTQ, dropout_p=dropout, is_causal=True)
        out_BTD: Tensor = self.c_proj(mixed_BHTQ.transpose(1, 2).reshape(batch, length, width))
        return F.dropout(out_BTD, self.dropout) if dropout else out_BTD


class MLP(nn.Module):
    """Two linear layers with GELU between them, in GPT-2's tanh approximation."""

    def __init__(self, shape: GPT2Shape, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.c_fc = nn.Linear(shape.width, 4 * shape.width)
        self.c_proj = nn.Linear(4 * shape.width, shape.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        out_BTD: Tensor = self.c_proj(F.gelu(self.c_fc(x_BTD), approximate="tanh"))
        return F.dropout(out_BTD, self.dropout) if self.dropout and self.training else out_BTD


class Block(nn.Module):
    """Attention, then the MLP; each reads a layer-normed input and adds its output to the residual stream."""

    def __init__(self, shape: GPT2Shape, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.width)
        self.attn = Attention(shape, dropout)
        self.ln_2 = nn.LayerNorm(shape.width)
        self.mlp = MLP(shape, dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attn(self.ln_1(x_BTD))
        stream_BTD: Tensor = x_BTD + self.mlp(self.ln_2(x_BTD))
        return stream_BTD


class GPT2(nn.Module):
    """``model(tokens_BT, targets_BT)`` returns the mean loss in nats per token (fp32); `logits` returns shape BTV.

    The token table may be padded (``ModelConfig.pad_vocab_to``) for faster matrix products. The logits of padding rows
    are dropped, so the loss is that of the unpadded model.
    """

    def __init__(self, shape: GPT2Shape, vocab_size: int, config: ModelConfig) -> None:
        super().__init__()
        self.shape = shape
        self.vocab_size = vocab_size
        self.dropout = config.dropout
        self.activation_checkpointing = config.activation_checkpointing
        self.loss_chunks = config.loss_chunks
        rows = math.ceil(vocab_size / config.pad_vocab_to) * config.pad_vocab_to
        self.wte = nn.Embedding(rows, shape.width)
        self.wpe = nn.Embedding(shape.context, shape.width)
        self.h = nn.ModuleList(Block(shape, config.dropout) for _ in range(shape.layers))
        self.ln_f = nn.LayerNorm(shape.width)
        self.initialize()

    @torch.no_grad()
    def initialize(self) -> None:
        """GPT-2's init: normal(0.02), zero biases; layers that write to the residual stream scaled by 1 / sqrt(2 L)."""
        stream_std = INIT_STD / math.sqrt(2 * self.shape.layers)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, stream_std if name.endswith("c_proj.weight") else INIT_STD)
            elif name.endswith("bias"):
                parameter.zero_()

    def hidden(self, tokens_BT: Tensor) -> Tensor:
        """The residual stream after the final layer norm, shape BTD: the input of the output projection."""
        x_BTD = self.wte(tokens_BT) + self.wpe.weight[: tokens_BT.shape[1]]
        if self.dropout and self.training:
            x_BTD = F.dropout(x_BTD, self.dropout)
        recompute = self.activation_checkpointing and self.training and torch.is_grad_enabled()
        for block in self.h:
            if recompute:
                x_BTD = checkpoint(block, x_BTD, use_reentrant=False, preserve_rng_state=self.dropout > 0)
            else:
                x_BTD = block(x_BTD)
        normed_BTD: Tensor = self.ln_f(x_BTD)
        return normed_BTD

    def logits(self, tokens_BT: Tensor) -> Tensor:
        """Logits of the next token at every position, shape BTV, without padding rows."""
        return F.linear(self.hidden(tokens_BT), self.wte.weight)[..., : self.vocab_size]

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        hidden_ND = self.hidden(tokens_BT).flatten(0, 1)
        return mean_cross_entropy(
            hidden_ND, self.wte.weight, targets_BT.flatten(), vocab_size=self.vocab_size, chunks=self.loss_chunks
        )


def build_gpt2(config: ModelConfig, *, vocab_size: int, sequence_length: int, layers: int | None = None) -> GPT2:
    """A freshly initialised GPT-2 of a preset of ``PRESETS``, drawn from PyTorch's global generator: seed that before.

    Args:
        sequence_length: makes the position table longer if the preset's context is shorter, in tokens.
        layers: number of blocks instead of the preset's, to estimate memory (memory/estimate.py), not to train.
    """
    shape = PRESETS[config.preset]
    longest = max(shape.context, sequence_length)
    grown = replace(shape, layers=layers or shape.layers, context=longest)
    return GPT2(grown, vocab_size, config)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
