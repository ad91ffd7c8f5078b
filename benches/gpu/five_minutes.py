"""The twin after the same five minutes, on a card: as benches/pytorch/five_minutes.py in all else.

    python3 benches/gpu/five_minutes.py runs/twin
"""

import sys
from pathlib import Path

# In front of this folder, where a file of the same name is.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "pytorch"))

import five_minutes  # noqa: E402

import attention  # noqa: E402
import torch  # noqa: E402
from model import Config  # noqa: E402
from twin import Twin  # noqa: E402


def on_card(config: Config, precision: str) -> Twin:
    torch.set_float32_matmul_precision("high" if precision == "bf16" else "highest")
    names = {window: "sdpa" for window in config.windows()}
    if precision == "bf16":
        for window in names:
            names[window] = attention.fastest(attention.compare(config, window, "cuda"))
    stream = torch.bfloat16 if precision == "bf16" else torch.float32
    attend = attention.chosen(names)
    return Twin(config, precision, compiled=True, device="cuda", attend=attend, stream=stream)


if __name__ == "__main__":
    five_minutes.main(on_card)
