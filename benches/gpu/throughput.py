"""Tokens a second and peak memory of the PyTorch twin on a card, one JSON line a shape.

    python3 benches/gpu/throughput.py --shape 8x512
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "pytorch"))

import torch
import torch.nn.functional as F
from model import SOFT_CAP, Attention, Config, Gpt, norm, rotary_norm
from optimizer import Optimizer
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

# depth x width: head size, rows, tokens a sequence, vocabulary; the second is the template's model with a
# card's batch, the third train.py's, the fourth the same with more of everything.
SHAPES = {
    "4x128": (32, 8, 256, 2048),
    "4x128x256": (32, 256, 256, 2048),
    "8x512": (128, 128, 2048, 8192),
    "12x768": (128, 64, 2048, 8192),
}


class CardAttention(Attention):
    """Windows by flex_attention, which skips the blocks that nobody sees; PyTorch's flash attention, or
    cuDNN's, where everything is seen."""

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], value: Tensor | None) -> Tensor:
        heads = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (F.linear(x, w).view(heads) for w in (self.c_q, self.c_k, self.c_v))
        if self.ve_gate is not None:
            gate = 2 * torch.sigmoid(F.linear(x[..., : self.ve_gate.size(1)], self.ve_gate))
            v = v + gate.unsqueeze(-1) * value.view(heads)
        q, k = rotary_norm(q, *rotary), rotary_norm(k, *rotary)
        q, k, v = (y.transpose(1, 2).to(v.dtype) for y in (q, k, v))
        if self.blocks is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = flex_attention(q, k, v, block_mask=self.blocks)
        return F.linear(y.transpose(1, 2).reshape(x.shape), self.c_proj)


class CardGpt(Gpt):
    """With the residual stream in bf16, as in train.py."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        length = config.sequence_len
        for block, window in zip(self.h, config.windows(), strict=True):
            block.attn.__class__ = CardAttention
            block.attn.band = None

            def seen(b, h, i, j, window=window):  # noqa: ANN001, ANN202
                return (j <= i) & (i - j <= window)

            is_long = window >= length
            block.attn.blocks = None if is_long else create_block_mask(seen, None, None, length, length)

    def forward(self, inputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        time = inputs.size(1)
        rotary = (self.cos[:time], self.sin[:time])
        x0 = norm(F.embedding(inputs, self.wte).bfloat16())
        x = x0
        for layer, block in enumerate(self.h):
            value = None
            if str(layer) in self.value_embeds:
                value = F.embedding(inputs, self.value_embeds[str(layer)]).bfloat16()
            lambdas = self.resid_lambdas[layer].bfloat16(), self.x0_lambdas[layer].bfloat16()
            x = block(lambdas[0] * x + lambdas[1] * x0, rotary, value)
        logits = F.linear(norm(x), self.lm_head).float()
        logits = SOFT_CAP * torch.tanh(logits / SOFT_CAP)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction=reduction)


def measure(shape: str, seconds: float, rows: int | None, mode: str) -> dict:
    torch.set_default_device("cuda")
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    depth, width = map(int, shape.split("x")[:2])
    head_dim, usual_rows, length, vocab = SHAPES[shape]
    config = Config(depth, width, head_dim, rows or usual_rows, vocab, length)
    model = CardGpt(config)
    run = torch.compile(model, dynamic=False, mode=mode)
    optimizer = Optimizer(model, width, torch.bfloat16, True)
    # With the frequencies of words, as examples/card.rs draws them.
    frequencies = 1 / (torch.arange(vocab) + 2.7)
    tokens = torch.multinomial(frequencies, config.rows * (length + 1), replacement=True)
    tokens = tokens.view(config.rows, length + 1)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def gradients() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16):
            loss = run(inputs, targets)
        loss.backward()
        # A step ends when its loss is known, here as there.
        loss.item()

    def whole_step() -> None:
        gradients()
        optimizer.step(0.1)

    def tokens_per_second(step: Callable[[], None]) -> float:
        """The median of five stretches."""
        speeds = []
        for _ in range(5):
            torch.cuda.synchronize()
            begun, steps = time.perf_counter(), 0
            while time.perf_counter() - begun < seconds / 5:
                step()
                steps += 1
            torch.cuda.synchronize()
            speeds.append(steps * inputs.numel() / (time.perf_counter() - begun))
        return round(statistics.median(speeds))

    for _ in range(4):
        whole_step()
    return {
        "shape": shape,
        "rows": config.rows,
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "mode": mode,
        "gradients_tokens_per_second": tokens_per_second(gradients),
        "step_tokens_per_second": tokens_per_second(whole_step),
        "peak_memory_mib": torch.cuda.max_memory_allocated() >> 20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", default=list(SHAPES), help="depth x width")
    parser.add_argument("--rows", type=int, help="sequences a step")
    parser.add_argument("--seconds", type=float, default=5, help="a measurement")
    parser.add_argument("--mode", default="default", help="torch.compile's")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(arguments.shape[0], arguments.seconds, arguments.rows, arguments.mode)))
        return
    for shape in arguments.shape:
        # A process each, or one's memory would be the next one's peak.
        one = ["--shape", shape, "--here"]
        if subprocess.run([sys.executable, *sys.argv, *one], env=os.environ, check=False).returncode:
            print(json.dumps({"shape": shape, "error": "see above"}), flush=True)


if __name__ == "__main__":
    main()
