"""Tokens a second, memory and use of a card by the PyTorch twin, one JSON line a shape.

    python3 benches/gpu/throughput.py --shape 8x512
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "pytorch"))

# depth x width, and the rows where they are not the usual ones: head size, rows, tokens, vocabulary. The
# first is the template's, the second its model with a batch for a card, the third train.py's.
SHAPES = {
    "4x128": (32, 8, 256, 2048),
    "4x128x256": (32, 256, 256, 2048),
    "8x512": (128, 128, 2048, 8192),
    "12x768": (128, 64, 2048, 8192),
}
WARM_UP = 4
# An H100's, of dense products in bf16.
PEAK_FLOPS = 989e12


def flop_per_token(matrices: int, width: int, length: int, windows: list[int]) -> int:
    """Forward and backward. Of a weight that multiplies, 6; of a layer's attention, 12 a channel and key
    that is seen, of which the first tokens see fewer."""
    keys = sum(sum(min(i, window) + 1 for i in range(length)) / length for window in windows)
    return round(6 * matrices + 12 * width * keys)


def parsed(arguments: argparse.Namespace, shape: str) -> tuple[int, ...]:
    """Depth, width, head size, rows, tokens and vocabulary."""
    depth, width, *rows = map(int, shape.split("x"))
    head_dim, rows, length, vocab = SHAPES.get(shape, (32, *(rows or [8]), 256, 2048))
    return depth, width, head_dim, arguments.rows or rows, length, vocab


def measure(
    arguments: argparse.Namespace,
    depth: int,
    width: int,
    head_dim: int,
    rows: int,
    length: int,
    vocab: int,
) -> dict:
    """In this process, whose memory is only this shape's."""
    import attention
    import torch
    from clock import steps_per_second
    from model import Config
    from twin import Twin

    device = arguments.device
    on_card = device == "cuda"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    config = Config(depth, width, head_dim, rows, vocab, length)

    compared, names = {}, {}
    for window in sorted(set(config.windows())):
        names[window] = arguments.attention
        if arguments.attention == "fastest":
            compared[window] = attention.compare(config, window, device)
            names[window] = attention.fastest(compared[window])
    if on_card:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    twin = Twin(
        config,
        "bf16",
        compiled=not arguments.eager,
        device=device,
        attend=attention.chosen(names),
        stream=torch.bfloat16,
        mode=arguments.mode,
    )

    # With the frequencies of words, as measurements/card.rs draws them: tables of embeddings feel them.
    tokens = rows * length
    frequencies = 1 / (torch.arange(vocab) + 2.7)
    text = torch.multinomial(frequencies, 2 * tokens, replacement=True)
    text = text.pin_memory() if on_card else text
    inputs, targets = torch.empty(2, rows, length, dtype=torch.int64, device=device)
    taken, loss = 0, float("nan")

    def batch() -> None:
        nonlocal taken
        start = taken * 97 % (tokens - 1)
        taken += 1
        for part, start in ((inputs, start), (targets, start + 1)):
            part.copy_(text[start : start + tokens].view(part.shape), non_blocking=True)

    def gradients() -> torch.Tensor:
        return twin.gradients(inputs, targets)

    def whole_step() -> torch.Tensor:
        loss = gradients()
        twin.optimizer.apply()
        return loss

    def captured(step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        """All that it launches as one graph."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            loss = step()

        def replay() -> torch.Tensor:
            graph.replay()
            return loss

        return replay

    def tokens_per_second(step: Callable[[], torch.Tensor]) -> int:
        def fed() -> None:
            nonlocal loss
            batch()
            twin.optimizer.aim(0.1)
            # A step ends when its loss is known.
            loss = step().item()

        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                fed()
            if arguments.graph:
                step = captured(step)
            return round(tokens * steps_per_second(fed, arguments.seconds, wait))

    wait = torch.cuda.synchronize if on_card else lambda: None
    # What is to become a graph must not have been on the usual one.
    stream = torch.cuda.Stream() if arguments.graph else None
    wait()
    whole = tokens_per_second(whole_step)
    # Neither what is looked up nor what only scales is multiplied as a matrix.
    matrices = sum(
        param.numel()
        for name, param in twin.model.named_parameters()
        if name.startswith(("h.", "lm_head"))
    )
    flop = flop_per_token(matrices, width, length, config.windows())
    if on_card:
        peak = torch.cuda.max_memory_allocated() >> 20
        free, total = torch.cuda.mem_get_info()
        card_memory = (total - free) >> 20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        card_memory = None
    return {
        "sequence": length,
        "vocab": vocab,
        "tokens_per_second": whole,
        "loss": loss,
        "gradients_tokens_per_second": tokens_per_second(gradients),
        "peak_memory_mib": peak,
        "card_memory_mib": card_memory,
        "parameters": sum(param.numel() for param in twin.model.parameters()),
        "flop_per_token": flop,
        "mfu": round(whole * flop / PEAK_FLOPS, 4) if on_card else None,
        "card": torch.cuda.get_device_name() if on_card else None,
        "torch": torch.__version__,
        "compiled": False if arguments.eager else arguments.mode,
        "graph": arguments.graph,
        "attention": names,
        "attention_ms": compared,
    }


def measured(arguments: argparse.Namespace, shape: str) -> dict:
    """The measurement, or why there is none."""
    try:
        return measure(arguments, *parsed(arguments, shape))
    except Exception as error:  # noqa: BLE001 (the next shape may do better)
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", default=list(SHAPES), help="depth x width [x rows]")
    parser.add_argument("--rows", type=int, help="sequences a step")
    parser.add_argument("--seconds", type=float, default=5, help="a measurement")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--attention",
        choices=["fastest", "sdpa", "cudnn", "flex", "varlen"],
        default="fastest",
        help="the fastest of them for each window, or one of them for all",
    )
    parser.add_argument("--mode", default="default", help="torch.compile's")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--graph", action="store_true", help="a step as one CUDA graph")
    parser.add_argument("--limit", type=float, default=150, help="seconds for a shape")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    # As in train.py: less of the memory is lost between what is in use.
    environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} | os.environ
    for shape in arguments.shape:
        depth, width, _, rows, *_ = parsed(arguments, shape)
        head = {"shape": f"{depth}x{width}", "rows": rows}
        if arguments.here:
            print(json.dumps(head | measured(arguments, shape)), flush=True)
            continue
        # A process each, or one's memory would be the next one's peak.
        one = [sys.executable, *sys.argv, "--shape", shape, "--here"]
        try:
            status = subprocess.run(one, env=environment, timeout=arguments.limit).returncode
            error = f"exit status {status}" if status else None
        except subprocess.TimeoutExpired:
            error = f"took longer than {arguments.limit:.0f} seconds"
        if error:
            print(json.dumps(head | {"error": error}), flush=True)


if __name__ == "__main__":
    main()
