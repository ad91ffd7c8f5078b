"""The model and its optimizer, compiled: what is trained step by step."""

import torch
from torch import Tensor

from model import Attend, Config, Gpt, Masked
from optimizer import Optimizer


class Twin:
    def __init__(
        self,
        config: Config,
        precision: str,
        compiled: bool,
        *,
        device: str = "cpu",
        attend: Attend = Masked,
        stream: torch.dtype = torch.float32,
        mode: str = "default",
    ) -> None:
        self.bf16 = precision == "bf16"
        self.device = device
        with torch.device(device):
            self.model = Gpt(config, attend, stream)
        self.run = self.model
        if compiled:
            self.run = torch.compile(self.model, dynamic=False, mode=mode)
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        self.optimizer = Optimizer(self.model, config.width, dtype, compiled)

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """With an optimizer that remembers nothing."""
        self.model.load_state_dict(weights)
        self.optimizer.forget()

    def gradients(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Leaves them beside the parameters, and returns the loss."""
        inputs, targets = (x.to(self.device, non_blocking=True) for x in (inputs, targets))
        self.model.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            loss = self.run(inputs, targets)
        loss.backward()
        return loss
