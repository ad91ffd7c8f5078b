"""The optimizer and the schedules of trainer-template/src/train.rs: Muon for the layers' matrices,
AdamW for everything else, each group's step compiled."""

from collections import defaultdict

import torch
from torch import Tensor, nn

EMBEDDING_LR, UNEMBEDDING_LR, MATRIX_LR, SCALAR_LR = 0.6, 0.004, 0.04, 0.5
BETA1, BETA2, X0_BETA1, EPS = 0.8, 0.95, 0.96, 1e-10
MOMENTUM_START, MOMENTUM, MOMENTUM_WARMUP = 0.85, 0.95, 0.3
MUON_BETA2 = 0.95
WEIGHT_DECAY = 0.2
WARMDOWN_RATIO = 0.5

# The coefficients of train.rs (Polar Express, arXiv 2505.16932).
POLAR_EXPRESS = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


def lr_multiplier(progress: float) -> float:
    return min(1.0, (1.0 - progress) / WARMDOWN_RATIO)


def muon_momentum(progress: float) -> float:
    risen = min(1.0, progress / MOMENTUM_WARMUP)
    return MOMENTUM_START + risen * (MOMENTUM - MOMENTUM_START)


def adamw(
    param: Tensor, grad: Tensor, mean: Tensor, square: Tensor, knobs: Tensor, beta1: float
) -> None:
    """`knobs` are rate / bias1 and 1 / bias2: in a tensor, so that new values compile nothing."""
    mean.lerp_(grad, 1 - beta1)
    square.lerp_(grad.square(), 1 - BETA2)
    param.sub_(knobs[0] * mean / ((square * knobs[1]).sqrt() + EPS))


def polar_express(xs: Tensor, dtype: torch.dtype) -> Tensor:
    xs = xs / (xs.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-6)
    xs = xs.to(dtype)
    tall = xs.size(-2) > xs.size(-1)
    xs = xs.mT if tall else xs
    for a, b, c in POLAR_EXPRESS:
        gram = xs @ xs.mT
        xs = a * xs + (b * gram + c * (gram @ gram)) @ xs
    return (xs.mT if tall else xs).float()


def muon(
    params: list[Tensor],
    grads: list[Tensor],
    momentum_buffer: Tensor,
    second_moment: Tensor,
    knobs: Tensor,
    dtype: torch.dtype,
) -> None:
    """`knobs` are rate, momentum and decay."""
    lr, momentum, decay, _ = knobs.unbind()
    grad, param = torch.stack(grads), torch.stack(params)
    momentum_buffer.lerp_(grad, 1 - momentum)
    update = polar_express(grad.lerp(momentum_buffer, momentum), dtype)
    rows, columns = update.shape[-2:]
    across, width = (-1, columns) if rows >= columns else (-2, rows)
    mean_square = update.square().mean(dim=across, keepdim=True)
    second_moment.lerp_(mean_square, 1 - MUON_BETA2)
    step_size = second_moment.clamp_min(1e-10).rsqrt()
    before = (mean_square.sum(dim=(-2, -1), keepdim=True) * width).sqrt()
    after = ((mean_square * step_size.square()).sum(dim=(-2, -1), keepdim=True) * width).sqrt()
    update = update * (step_size * (before / after.clamp_min(1e-10)))
    agree = update * param >= 0
    param = param - lr * (update + decay * param * agree)
    for target, value in zip(params, param.unbind()):
        target.copy_(value)


class Optimizer:
    def __init__(self, model: nn.Module, width: int, dtype: torch.dtype, compiled: bool) -> None:
        self.dtype = dtype
        # One compiled function for all groups: their shapes are few and fixed.
        torch._dynamo.config.recompile_limit = 32
        compiler = torch.compile if compiled else lambda f, **_: f
        self.adamw = compiler(adamw, dynamic=False)
        self.muon = compiler(muon, dynamic=False)
        self.steps = 0
        self.singles: list[tuple[nn.Parameter, float, float, Tensor, Tensor]] = []
        matrices = defaultdict(list)
        scale = (width / 768) ** -0.5
        for name, param in model.named_parameters():
            match name.split(".")[0]:
                case "wte" | "value_embeds":
                    lr, beta1 = EMBEDDING_LR * scale, BETA1
                case "lm_head":
                    lr, beta1 = UNEMBEDDING_LR * scale, BETA1
                case "resid_lambdas":
                    lr, beta1 = SCALAR_LR * 0.01, BETA1
                case "x0_lambdas":
                    lr, beta1 = SCALAR_LR, X0_BETA1
                case _:
                    matrices[tuple(param.shape)].append(param)
                    continue
            state = torch.zeros_like(param), torch.zeros_like(param)
            self.singles.append((param, lr, beta1, *state))
        self.stacks: list[tuple[list[nn.Parameter], float, Tensor, Tensor]] = []
        for (rows, columns), params in matrices.items():
            neurons = (rows, 1) if rows >= columns else (1, columns)
            zeros = params[0].new_zeros
            state = zeros(len(params), rows, columns), zeros(len(params), *neurons)
            lr = MATRIX_LR * max(rows / columns, 1) ** 0.5
            self.stacks.append((params, lr, *state))
        # A row for each of them, in this order. Four wide, and each begins where a card likes it.
        count = len(self.singles) + len(self.stacks)
        self.knobs = next(model.parameters()).new_zeros(count, 4)

    def forget(self) -> None:
        """As if no step had been taken."""
        self.steps = 0
        for *_, first, second in [*self.singles, *self.stacks]:
            first.zero_()
            second.zero_()

    def step(self, progress: float) -> None:
        self.aim(progress)
        self.apply()

    def aim(self, progress: float) -> None:
        """Turns the knobs for the next step: all that a step needs of this process's memory."""
        self.steps += 1
        multiplier = lr_multiplier(progress)
        knobs = []
        for _, lr, beta1, *_ in self.singles:
            bias1, bias2 = 1 - beta1**self.steps, 1 - BETA2**self.steps
            knobs.append([lr * multiplier / bias1, 1 / bias2, 0, 0])
        decay = WEIGHT_DECAY * (1 - progress)
        for _, lr, *_ in self.stacks:
            knobs.append([lr * multiplier, muon_momentum(progress), decay, 0])
        self.knobs.copy_(torch.tensor(knobs, device="cpu"), non_blocking=True)

    @torch.no_grad()
    def apply(self) -> None:
        """The step."""
        knobs = iter(self.knobs.unbind())
        for param, _, beta1, mean, square in self.singles:
            self.adamw(param, param.grad, mean, square, next(knobs), beta1)
        for params, _, momentum_buffer, second_moment in self.stacks:
            grads = [param.grad for param in params]
            self.muon(params, grads, momentum_buffer, second_moment, next(knobs), self.dtype)
