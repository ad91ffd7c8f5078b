"""The model of trainer-template/src/train.rs in PyTorch: same tensors, same start, same loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SOFT_CAP = 15.0
ROTARY_BASE = 10_000.0
MLP_RATIO = 4
GATE_CHANNELS = 32
NORM_EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Config:
    depth: int = 4
    width: int = 64
    head_dim: int = 32
    rows: int = 8
    vocab_size: int = 2048
    sequence_len: int = 256
    window_pattern: str = "SSSL"

    def windows(self) -> list[int]:
        """How far back each layer sees; the last one sees everything."""
        long = self.sequence_len
        letters = (self.window_pattern * self.depth)[: self.depth - 1]
        return [long // 2 if letter == "S" else long for letter in letters] + [long]

    def has_value_embedding(self, layer: int) -> bool:
        return layer % 2 == (self.depth - 1) % 2


def norm(x: Tensor) -> Tensor:
    # Autocast would return f32 on a card, in some versions.
    return F.rms_norm(x, (x.size(-1),), eps=NORM_EPS).to(x.dtype)


def rotary_norm(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x1, x2 = x.chunk(2, dim=-1)
    return norm(torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin), dim=-1))


def uniform(shape: tuple[int, ...], width: int) -> nn.Parameter:
    """With the standard deviation of 1 / sqrt(width)."""
    limit = math.sqrt(3 / width)
    return nn.Parameter(torch.empty(shape).uniform_(-limit, limit))


def zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


class Masked(nn.Module):
    """Attention to oneself and `window` tokens back; all are [row, time, head, channel]."""

    def __init__(self, length: int, window: int) -> None:
        super().__init__()
        i, j = torch.arange(length)[:, None], torch.arange(length)[None, :]
        # None is plain causal attention, which has a faster path of its own.
        band = None if window >= length else (j <= i) & (i - j <= window)
        self.register_buffer("band", band, persistent=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=self.band, is_causal=self.band is None
        )
        return y.transpose(1, 2)


# What makes an attention such as `Masked` for a length and a window.
Attend = Callable[[int, int], nn.Module]


class Attention(nn.Module):
    def __init__(self, config: Config, layer: int, attend: Attend) -> None:
        super().__init__()
        width = config.width
        self.head_dim = config.head_dim
        self.c_q, self.c_k, self.c_v = (uniform((width, width), width) for _ in range(3))
        self.c_proj = zeros(width, width)
        self.ve_gate = None
        if config.has_value_embedding(layer):
            self.ve_gate = zeros(width // config.head_dim, min(GATE_CHANNELS, width))
        self.attend = attend(config.sequence_len, config.windows()[layer])

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], value: Tensor | None) -> Tensor:
        heads = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (F.linear(x, w).view(heads) for w in (self.c_q, self.c_k, self.c_v))
        if self.ve_gate is not None:
            gate = 2 * torch.sigmoid(F.linear(x[..., : self.ve_gate.size(1)], self.ve_gate))
            v = v + gate.unsqueeze(-1) * value.view(heads)
        q, k = rotary_norm(q, *rotary), rotary_norm(k, *rotary)
        y = self.attend(q.to(v.dtype), k.to(v.dtype), v)
        return F.linear(y.reshape(x.shape), self.c_proj)


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = uniform((MLP_RATIO * width, width), width)
        self.c_proj = zeros(width, MLP_RATIO * width)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(x, self.c_fc)).square(), self.c_proj)


class Block(nn.Module):
    def __init__(self, config: Config, layer: int, attend: Attend) -> None:
        super().__init__()
        self.attn = Attention(config, layer, attend)
        self.mlp = Mlp(config.width)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], value: Tensor | None) -> Tensor:
        x = x + self.attn(norm(x), rotary, value)
        return x + self.mlp(norm(x))


class Gpt(nn.Module):
    """`stream` is what the residual stream is in."""

    def __init__(
        self, config: Config, attend: Attend = Masked, stream: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.stream = stream
        vocab, width, depth = config.vocab_size, config.width, config.depth
        self.wte = nn.Parameter(torch.randn(vocab, width))
        self.lm_head = nn.Parameter(torch.randn(vocab, width) * 0.001)
        self.value_embeds = nn.ParameterDict(
            {
                str(layer): uniform((vocab, width), width)
                for layer in range(depth)
                if config.has_value_embedding(layer)
            }
        )
        self.h = nn.ModuleList(Block(config, layer, attend) for layer in range(depth))
        self.resid_lambdas = nn.Parameter(torch.ones(depth))
        self.x0_lambdas = nn.Parameter(torch.full((depth,), 0.1))
        half = config.head_dim // 2
        speeds = ROTARY_BASE ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(config.sequence_len)[:, None] * speeds
        # [time, 1, head_dim / 2]
        self.register_buffer("cos", angles.cos().float()[:, None, :], persistent=False)
        self.register_buffer("sin", angles.sin().float()[:, None, :], persistent=False)

    def forward(self, inputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        """The cost of the targets, in nats; both are [batch, time]."""
        time = inputs.size(1)
        rotary = (self.cos[:time], self.sin[:time])
        x0 = norm(F.embedding(inputs, self.wte).to(self.stream))
        x = x0
        for layer, block in enumerate(self.h):
            value = None
            if str(layer) in self.value_embeds:
                value = F.embedding(inputs, self.value_embeds[str(layer)]).to(self.stream)
            x = self.resid_lambdas[layer] * x + self.x0_lambdas[layer] * x0
            x = block(x, rotary, value)
        logits = F.linear(norm(x), self.lm_head).float()
        logits = SOFT_CAP * torch.tanh(logits / SOFT_CAP)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)
