"""What `cargo run --release --example twin -- export` wrote, and weights under the template's names."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model import Config


@dataclass(frozen=True)
class Exported:
    config: Config
    # [batch, row, token]: a row's inputs and, one further, its targets
    batches: np.ndarray
    # where training starts
    first: dict[str, Tensor]
    # what the template took some steps in f32 from, and where they led
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    # of each of these steps, before it was taken
    losses: list[float]

    @classmethod
    def read(cls, folder: Path) -> "Exported":
        facts = json.loads((folder / "twin.json").read_text())
        first = read_weights(folder / "first.safetensors")
        vocab_size, width = first["wte"].shape
        depth = first["resid_lambdas"].numel()
        heads = first[f"h.{depth - 1}.attn.ve_gate"].size(0)
        rows, tokens = facts["rows"], facts["seq_len"] + 1
        return cls(
            Config(depth, width, width // heads, rows, vocab_size, facts["max_seq_len"]),
            np.memmap(folder / "batches.u16", "<u2", "r").reshape(-1, rows, tokens),
            first,
            read_weights(folder / "before.safetensors"),
            read_weights(folder / "after.safetensors"),
            facts["losses"],
        )

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        if step >= len(self.batches):
            raise SystemExit("the batches are used up: export more of them, with --batches")
        tokens = torch.from_numpy(self.batches[step].astype(np.int64))
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


# The format is 8 bytes of length, that many of JSON, then the tensors' bytes.


def read_weights(path: Path) -> dict[str, Tensor]:
    data = path.read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    weights = {}
    for name, entry in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "F32", f"{name} is {entry['dtype']}"
        begin, end = (start + offset for offset in entry["data_offsets"])
        values = np.frombuffer(data[begin:end], "<f4").reshape(entry["shape"])
        weights[name] = torch.from_numpy(values.copy())
    return weights


def write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    header, parts, offset = {}, [], 0
    for name, tensor in weights.items():
        part = tensor.detach().cpu().contiguous().numpy().astype("<f4").tobytes()
        ends = [offset, offset := offset + len(part)]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": ends}
        parts.append(part)
    text = json.dumps(header).encode()
    # The tensors begin at a multiple of eight.
    text += b" " * (-len(text) % 8)
    path.write_bytes(b"".join([struct.pack("<Q", len(text)), text, *parts]))
