"""What stays fixed: the text, the budget, the metric."""

import math
import random

TIME_BUDGET = 5.0  # seconds
VOCAB_SIZE = 26

_random = random.Random(0)


def _text(length):
    """A language in which each letter has four successors."""
    letter, letters = 0, []
    for _ in range(length):
        letter = (5 * letter + _random.choice([1, 3, 8, 11])) % VOCAB_SIZE
        letters.append(letter)
    return letters


TRAIN = _text(20_000)
VALIDATION = _text(5_000)


def evaluate_bpb(nats):
    """Bits per byte: every letter is a byte."""
    pairs = list(zip(VALIDATION, VALIDATION[1:]))
    return sum(nats(a, b) for a, b in pairs) / len(pairs) / math.log(2)
