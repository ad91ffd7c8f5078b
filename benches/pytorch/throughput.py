"""Tokens a second and peak memory of the PyTorch twin, one JSON line a shape and precision.

    python benches/pytorch/throughput.py --shape 4x64 --precision bf16
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable

from clock import steps_per_second
from environment import ENVIRONMENT

# depth x width: head size and rows
SHAPES = {"4x64": (32, 8), "4x128": (32, 8), "4x256": (64, 16)}


def measure(arguments: argparse.Namespace, shape: str, precision: str) -> dict:
    """In this process, which must have been started with ENVIRONMENT."""
    import torch
    from model import Config
    from twin import Twin

    torch.manual_seed(0)
    depth, width = map(int, shape.split("x"))
    head_dim, rows = SHAPES.get(shape, (32, 8))
    config = Config(depth, width, head_dim, arguments.rows or rows)
    compiled = not arguments.eager
    twin = Twin(config, precision, compiled)
    tokens = torch.randint(config.vocab_size, (config.rows, config.sequence_len + 1))
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def gradients() -> None:
        twin.gradients(inputs, targets)

    def whole_step() -> None:
        gradients()
        twin.optimizer.step(0.1)

    def tokens_per_second(step: Callable[[], None]) -> int:
        return round(inputs.numel() * steps_per_second(step, arguments.seconds))

    for _ in range(3):
        whole_step()
    return {
        "shape": shape,
        "rows": config.rows,
        "precision": precision,
        "compiled": compiled,
        "torch": torch.__version__,
        "parameters": sum(param.numel() for param in twin.model.parameters()),
        "gradients_tokens_per_second": tokens_per_second(gradients),
        "step_tokens_per_second": tokens_per_second(whole_step),
    }


def peak_memory_mib() -> int:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", nargs="+", default=list(SHAPES), help="depth x width")
    parser.add_argument("--precision", nargs="+", default=["bf16", "f32"])
    parser.add_argument("--rows", type=int, help="sequences a step")
    parser.add_argument("--seconds", type=float, default=10, help="a measurement")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--no-tunables", action="store_true", help="the allocator as it comes")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for shape in arguments.shape:
        for precision in arguments.precision:
            if arguments.here:
                measured = measure(arguments, shape, precision)
                print(json.dumps(measured | {"peak_memory_mib": peak_memory_mib()}), flush=True)
                continue
            # A process each, or one's memory would be the next one's peak.
            environment = os.environ | ENVIRONMENT
            if arguments.no_tunables:
                del environment["GLIBC_TUNABLES"]
            one = ["--shape", shape, "--precision", precision, "--here"]
            subprocess.run([sys.executable, *sys.argv, *one], env=environment, check=True)


if __name__ == "__main__":
    main()
