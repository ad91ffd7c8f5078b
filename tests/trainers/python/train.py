"""A character bigram model in the shape of autoresearch's train.py: constants on top, a fixed time
budget in the loop, a block of figures at the end. It needs nothing but Python."""

import math
import time

import prepare

# ---------------------------------------------------------------------------
# Hyperparameters
# ---------------------------------------------------------------------------

SMOOTHING = 5.0  # added to every count
BATCH_SIZE = 512  # characters a step

# ---------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------

t_start = time.time()
counts = {}
totals = {}
step = 0
total_training_time = 0.0
for begin in range(0, len(prepare.TRAIN) - 1, BATCH_SIZE):
    t0 = time.time()
    batch = prepare.TRAIN[begin : begin + BATCH_SIZE + 1]
    for a, b in zip(batch, batch[1:]):
        counts[a, b] = counts.get((a, b), 0) + 1
        totals[a] = totals.get(a, 0) + 1
    step += 1
    total_training_time += time.time() - t0
    if total_training_time >= prepare.TIME_BUDGET:
        break


def nats(a, b):
    share = counts.get((a, b), 0) + SMOOTHING
    return -math.log(share / (totals.get(a, 0) + SMOOTHING * prepare.VOCAB_SIZE))


val_bpb = prepare.evaluate_bpb(nats)
print("---")
print(f"val_bpb:          {val_bpb:.6f}")
print(f"training_seconds: {total_training_time:.1f}")
print(f"total_seconds:    {time.time() - t_start:.1f}")
print(f"peak_vram_mb:     {0.0:.1f}")
print(f"total_tokens_M:   {step * BATCH_SIZE / 1e6:.1f}")
print(f"num_steps:        {step}")
print(f"num_params_M:     {len(counts) / 1e6:.1f}")
