"""The twin after the same five minutes: trains what was exported, and writes the weights.

    cargo run --release --example twin -- export runs/twin
    python benches/pytorch/five_minutes.py runs/twin
    cargo run --release --example twin -- score runs/twin runs/twin/pytorch.safetensors
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import environment

environment.enter()

import torch  # noqa: E402
from exported import Exported, write_weights  # noqa: E402
from model import Config  # noqa: E402
from twin import Twin  # noqa: E402


def train(twin: Twin, exported: Exported, progress: Callable[[int], float]) -> dict:
    """Steps until `progress`, of the steps begun, says that the budget is spent."""
    begun, steps, loss = time.perf_counter(), 0, float("nan")
    while progress(steps) < 1:
        inputs, targets = exported.batch(steps)
        steps += 1
        mean = twin.gradients(inputs, targets)
        twin.optimizer.step(progress(steps))
        loss = mean.item()
    seconds = time.perf_counter() - begun
    return {"steps": steps, "tokens": steps * inputs.numel(), "seconds": seconds, "loss": loss}


def compiled(config: Config, precision: str) -> Twin:
    return Twin(config, precision, compiled=True)


def main(twin_of: Callable[[Config, str], Twin] = compiled) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the template was exported to")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--steps", type=int, help="a budget of steps instead")
    parser.add_argument("--precision", choices=["bf16", "f32"], default="bf16")
    arguments = parser.parse_args()
    exported = Exported.read(arguments.folder)
    twin = twin_of(exported.config, arguments.precision)

    # Compiling is not on the budget. What these steps did is undone.
    train(twin, exported, lambda steps: steps / 3)
    twin.start_from(exported.first)
    torch.compiler.set_stance("fail_on_recompile")

    begun = time.perf_counter()

    def by_the_clock(_: int) -> float:
        return min(1.0, (time.perf_counter() - begun) / arguments.seconds)

    steps = arguments.steps
    result = train(twin, exported, (lambda taken: taken / steps) if steps else by_the_clock)
    write_weights(arguments.folder / "pytorch.safetensors", dict(twin.model.named_parameters()))
    print(json.dumps({"precision": arguments.precision, "torch": torch.__version__} | result))


if __name__ == "__main__":
    main()
