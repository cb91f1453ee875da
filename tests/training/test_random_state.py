"""Random states that tensors and plain values can hold: what is drawn after a restore is what was drawn before."""

import io
import random

import numpy as np
import torch

from permafrost.training.random_state import random_state, restore_random_state


def drawn() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(()).item()]


def test_what_is_drawn_after_is_what_was_drawn_before():
    random.gauss(0, 1)  # half of a pair is kept by both libraries
    np.random.randn()
    state = random_state()
    first = [drawn() for _ in range(700)]  # more than either generator has words of state
    restore_random_state(state)
    assert [drawn() for _ in range(700)] == first


def test_it_loads_as_tensors_alone():
    file = io.BytesIO()
    torch.save(random_state(), file)
    first = drawn()
    file.seek(0)
    restore_random_state(torch.load(file, weights_only=True))
    assert drawn() == first
