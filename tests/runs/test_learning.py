"""Shipped configurations learn as well as when their bands were recorded (tests/learning_bands.py)."""

import json
import statistics

import learning_bands
import pytest

RECORDED = json.loads(learning_bands.FILE.read_text())["bands"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore:builtin type .* has no __module__:DeprecationWarning")  # Box2D's wrapper
@pytest.mark.parametrize("env_id", learning_bands.TASKS)
def test_median_of_three_seeds_is_in_its_band(tmp_path, env_id):
    recorded = RECORDED[env_id]
    assert recorded["keys"] == learning_bands.TASKS[env_id], "other keys than were recorded: record anew"
    low, high = recorded["band"]
    scores = [learning_bands.score(env_id, seed, tmp_path / str(seed)) for seed in learning_bands.TESTED_SEEDS]
    assert low <= statistics.median(scores) <= high, f"scores {scores}"
