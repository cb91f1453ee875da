"""What the machine is asked for."""

import os
import subprocess
import sys

import pytest

PRODUCTS = """
import torch
from permafrost.training import hardware
hardware.KEPT_KERNELS = {limit}
hardware.keep_few_kernels()
for rows in (1, 2, 3, 4, 5, 6, 1):
    torch.ones(64 * rows, 64, dtype=torch.bfloat16) @ torch.ones(64, 64, dtype=torch.bfloat16)
"""


@pytest.mark.parametrize(("limit", "compiled"), [(100, 6), (4, 7)])
def test_what_onednn_compiled_is_forgotten_over_the_limit(limit, compiled):
    own = {name: value for name, value in os.environ.items() if not name.startswith("ONEDNN")}
    environment = own | {"ONEDNN_VERBOSE": "2", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PRODUCTS.format(limit=limit)]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
    if "create:cache" not in said:
        pytest.skip("oneDNN does not multiply bfloat16 on this CPU")
    assert said.count("create:cache_miss") == compiled
