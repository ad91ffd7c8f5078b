"""Whether the twin computes what the template does: a few steps from the same weights, on the same
batches, in f32 on both sides.

    cargo run --release --example twin -- export runs/twin
    python benches/pytorch/same_loss.py runs/twin
"""

import argparse
import sys
from pathlib import Path

from exported import Exported
from twin import Twin

# What rounding explains: of a loss before anything has moved, of one after steps, each of which
# makes the difference before it larger, and of the way that a weight went.
FIRST, LATER, WAY = 1e-6, 1e-4, 2e-2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="where the template was exported to")
    exported = Exported.read(parser.parse_args().folder)
    twin = Twin(exported.config, "f32", compiled=False)
    twin.start_from(exported.before)
    same = True
    print(f"{'step':>4} {'template':>12} {'twin':>12} {'difference':>11}")
    for step, expected in enumerate(exported.losses):
        loss = twin.gradients(*exported.batch(step)).item()
        twin.optimizer.step((step + 1) / len(exported.losses))
        difference = loss / expected - 1
        same &= abs(difference) < (LATER if step else FIRST)
        print(f"{step:>4} {expected:12.7f} {loss:12.7f} {difference:+11.1e}")
    for name, param in twin.model.named_parameters():
        way = (exported.after[name] - exported.before[name]).norm()
        difference = ((param - exported.after[name]).norm() / way).item()
        print(f"{name:<20} went {way.item():10.4f}, off by {difference:7.1e} of it")
        same &= difference < WAY
    if not same:
        sys.exit("the twin computes something else")


if __name__ == "__main__":
    main()
