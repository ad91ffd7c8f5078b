"""The environment of a worker of overnight on two cores, for a process of PyTorch."""

import os
import sys

# Where memory comes from is settled when a process starts. The first line is what overnight gives
# its workers; the second is the number of threads.
ENVIRONMENT = {
    "GLIBC_TUNABLES": "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:"
    "glibc.malloc.top_pad=268435456",
    "OMP_NUM_THREADS": "2",
}


def enter() -> None:
    """Starts this program anew where it has another one."""
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ENVIRONMENT)
