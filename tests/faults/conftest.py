"""Chance for the fault suite: a fresh seed each run, printed with a failure, repeated by HEADRACE_FAULT_SEED."""

import os
import random

import pytest

VARIABLE = "HEADRACE_FAULT_SEED"


@pytest.fixture
def chance() -> random.Random:
    """Random numbers of this test."""
    seed = int(os.environ.get(VARIABLE) or random.SystemRandom().randrange(10**9))
    print(f"to repeat: {VARIABLE}={seed}")
    return random.Random(seed)
