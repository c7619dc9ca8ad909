"""Record loss and gradient norm of healthy training runs, 10,000 real steps each, into ``training_series.npz``.

    python tests/golden/record_training.py

The divergence monitor is calibrated on these series (``tests/unit/test_divergence.py``): they must cause no warning.
About a minute per series on one CPU core. Three kinds of noise: a byte GPT with AdamW and a cosine schedule; an MLP
with SGD and momentum that memorises a small set of windows, so its loss falls by orders of magnitude and single batches
stand out; and the same GPT with a jump along its average displacement (time constant 100, gain 0.6) after every fifth
real step. Columns: loss, gradient norm before clipping, and 1 right after a jump of the weights (else 0).
"""

import math
import sysconfig
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

STEPS = 10_000
CONTEXT = 32


class ByteGPT(nn.Module):
    """Two pre-norm transformer blocks of width 32 over bytes, independent of the rest of this repository."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(256, 32), nn.Embedding(CONTEXT, 32)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 2, 128, dropout=0.0, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.head = nn.Linear(32, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        x_BTC = self.token(tokens_BT) + self.position.weight
        for block in self.blocks:
            x_BTC = block(x_BTC, src_mask=self.mask, is_causal=True)
        return self.head(x_BTC)


class LastByteMLP(nn.Module):
    """Predicts the next byte from the previous eight."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Embedding(256, 16), nn.Flatten(), nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 256)
        )

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.net(tokens_BT[:, -8:])[:, None]


def library_bytes() -> Tensor:
    root = Path(sysconfig.get_paths()["stdlib"])
    text = b"".join(path.read_bytes() for path in sorted(root.glob("*.py")))
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


def record(
    model: nn.Module, optimizer: torch.optim.Optimizer, starts: Tensor, *, batch: int, cosine: bool, jump: float
) -> np.ndarray:
    """Train for STEPS real steps on windows that begin at ``starts``; after every fifth, jump if ``jump`` is not 0."""
    data, params = library_bytes(), list(model.parameters())
    peak = optimizer.param_groups[0]["lr"]
    mean = [torch.zeros_like(p) for p in params]
    anchor = [p.detach().clone() for p in params]
    rows = np.zeros((STEPS, 3))
    for step in range(STEPS):
        scale = min(1.0, (step + 1) / 200) * (0.55 + 0.45 * math.cos(math.pi * step / STEPS) if cosine else 1.0)
        optimizer.param_groups[0]["lr"] = peak * scale
        index = starts[torch.randint(len(starts), (batch,))][:, None] + torch.arange(CONTEXT)
        logits = model(data[index])
        loss = F.cross_entropy(logits.flatten(0, 1), data[index + 1][:, -logits.shape[1] :].flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(params, 1.0 if cosine else math.inf)
        optimizer.step()
        rows[step, :2] = loss.item(), norm.item()
        if jump and step % 5 == 4:
            jumped = jump_along_mean(params, mean, anchor, step, gain=jump * scale)
            if jumped and step + 1 < STEPS:
                rows[step + 1, 2] = 1
    return rows


@torch.no_grad()
def jump_along_mean(params: list[Tensor], mean: list[Tensor], anchor: list[Tensor], step: int, *, gain: float) -> bool:
    """Update the average displacement with the last five real steps, then jump by five; no jump in the first 500."""
    for p, m, a in zip(params, mean, anchor, strict=True):
        m.lerp_(p - a, 5 / 100)
        if step >= 500:
            p.add_(m, alpha=gain)
        a.copy_(p)
    return step >= 500


def main() -> None:
    torch.set_num_threads(1)
    series = {}
    for name in ("gpt_adamw", "mlp_sgd", "gpt_jumps"):
        torch.manual_seed(0)
        anywhere = torch.arange(len(library_bytes()) - CONTEXT - 1)
        if name == "mlp_sgd":
            model: nn.Module = LastByteMLP()
            sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            few = anywhere[torch.randint(len(anywhere), (512,))]
            series[name] = record(model, sgd, few, batch=16, cosine=False, jump=0.0)
        else:
            model = ByteGPT()
            adamw = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
            jump = 0.6 if name == "gpt_jumps" else 0.0
            series[name] = record(model, adamw, anywhere, batch=8, cosine=True, jump=jump)
        print(name, "first", series[name][0], "last 100", series[name][-100:].mean(0))
    np.savez_compressed(
        Path(__file__).with_name("training_series.npz"), **{k: v.astype(np.float16) for k, v in series.items()}
    )


if __name__ == "__main__":
    main()
