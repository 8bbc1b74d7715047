"""Fixtures: processes that act as ranks, and a configuration whose environments they share unevenly."""

import pytest
from rank_pool import Pool


@pytest.fixture(scope="package")
def pool():
    pool = Pool(4)
    yield pool
    pool.close()


@pytest.fixture
def native(small):
    """Returns a function that makes the small configuration with five native envs, so that shares are uneven."""

    def make(**keys):
        uneven = {"parallels": 5, "horizon_size": 16, "n_minibatch": 3, "running_steps": 400}
        return small(**{"vectorize": "MujocoVecEnv", "logger": "none", **uneven, **keys})

    return make
