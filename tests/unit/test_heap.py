# SPDX-License-Identifier: Apache-2.0
"""What the kernel is asked for, batch after batch."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Prints the page faults of as many batches as a flood has in seconds, the first ones left out.
BATCHES = """
import resource
from packetwatch import heap
{keep}
def batch():
    return [b"x" * (2 << 20), b"y" * (1 << 20)]
for _ in range(10):
    batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(200):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep):
    run = [sys.executable, "-c", BATCHES.format(keep=keep)]
    return int(subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout)


def test_a_batch_reuses_the_memory_of_the_one_before():
    assert faults("heap.keep()") < 1000


def test_the_test_would_see_it():
    """With thresholds that give everything back: 3 MB are 768 pages a batch."""
    assert faults("heap._KEPT_BYTES = 65536; heap.keep()") > 100_000
