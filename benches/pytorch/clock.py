"""How fast something that is done again and again is."""

import statistics
import time
from collections.abc import Callable


def steps_per_second(
    step: Callable[[], None], seconds: float, wait: Callable[[], None] = lambda: None
) -> float:
    """The median of five stretches: a neighbour's burst must not decide. `wait` is for what steps
    leave running."""
    speeds = []
    wait()
    for _ in range(5):
        begun, steps = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds / 5:
            step()
            steps += 1
        wait()
        speeds.append(steps / (time.perf_counter() - begun))
    return statistics.median(speeds)
