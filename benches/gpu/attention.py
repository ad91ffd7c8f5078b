"""Attention on a card, in the ways that PyTorch has of its own, and which of them is the fastest.

Each is made for a length and a window, and takes queries, keys and values of [row, time, head, channel],
as `Masked` of benches/pytorch/model.py does.
"""

import functools
import time

import torch
import torch.nn.functional as F
from model import Attend, Config, Masked
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn

# For where nothing around it is compiled: on its own it writes all scores down.
compiled_flex = torch.compile(flex_attention, dynamic=False)


@functools.cache
def block_mask(length: int, window: int, device: torch.device) -> BlockMask:
    def sees(_row: Tensor, _head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (j <= i) & (i - j <= window)

    return create_block_mask(sees, None, None, length, length, device=device)


class Flex(nn.Module):
    """Skips the blocks that nobody sees."""

    def __init__(self, length: int, window: int) -> None:
        super().__init__()
        self.block_mask = block_mask(length, window, torch.get_default_device())

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        flex = flex_attention if torch.compiler.is_compiling() else compiled_flex
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        return flex(q, k, v, block_mask=self.block_mask).transpose(1, 2)


class Varlen(nn.Module):
    """Flash attention, which takes a window only where all rows are one sequence with seams."""

    def __init__(self, length: int, window: int) -> None:
        super().__init__()
        self.length = length
        # Left and right of a token.
        self.sides = (window if window < length else -1, 0)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seams = torch.arange(q.size(0) + 1, dtype=torch.int32, device=q.device) * self.length
        flat = (y.flatten(0, 1) for y in (q, k, v))
        ends = (seams, seams, self.length, self.length)
        return varlen_attn(*flat, *ends, window_size=self.sides).view(q.shape)


class Cudnn(Masked):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return super().forward(q, k, v)


KINDS: dict[str, Attend] = {"sdpa": Masked, "cudnn": Cudnn, "flex": Flex, "varlen": Varlen}

# Tokens that kinds are compared on: with fewer, it is the time to launch them that is compared.
TOKENS = 65536


class Trial:
    """Random heads, and what attention to them should be."""

    def __init__(self, config: Config, window: int, device: str) -> None:
        length, heads = config.sequence_len, config.width // config.head_dim
        rows = max(config.rows, TOKENS // length) if device == "cuda" else config.rows
        shape = (rows, length, heads, config.head_dim)
        self.qkv = [
            torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)
            for _ in range(3)
        ]
        self.back = torch.randn_like(self.qkv[0])
        self.wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        with torch.device(device):
            masked = Masked(length, window)
        self.expected = masked(*(y[:1].detach().float() for y in self.qkv))

    def exact(self, attend: nn.Module) -> bool:
        """But for rounding."""
        return (attend(*self.qkv)[:1].float() - self.expected).abs().max().item() < 0.05

    def milliseconds(self, attend: nn.Module) -> float:
        """Of one pass there and back, the median of nine."""
        times = []
        for _ in range(11):
            self.wait()
            begun = time.perf_counter()
            torch.autograd.grad(attend(*self.qkv), self.qkv, self.back)
            self.wait()
            times.append(1e3 * (time.perf_counter() - begun))
        return sorted(times[2:])[4]


def compare(config: Config, window: int, device: str) -> dict[str, float | str]:
    """The kinds for a window: how long each takes, or why it cannot be used."""
    trial = Trial(config, window, device)
    results: dict[str, float | str] = {}
    for name, kind in KINDS.items():
        try:
            with torch.device(device):
                attend = kind(config.sequence_len, window)
            same = trial.exact(attend)
            results[name] = round(trial.milliseconds(attend), 3) if same else "something else"
        except Exception as error:  # noqa: BLE001 (each fails in ways of its own)
            results[name] = f"{type(error).__name__}: {error}".splitlines()[0][:80]
    return results


def fastest(results: dict[str, float | str]) -> str:
    return min((time, name) for name, time in results.items() if isinstance(time, float))[1]


def chosen(names: dict[int, str]) -> Attend:
    """The kind of each window by its name."""
    return lambda length, window: KINDS[names[window]](length, window)
