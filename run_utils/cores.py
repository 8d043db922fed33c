"""The processor cores of this process."""

import os
import sys


def cores_of_process():
    """How many cores this process may use. The processes of a launch on one machine share them."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
