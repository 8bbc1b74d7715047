"""Training on several ranks: the same learning as on one, and runs that stop, fail and resume."""

from pathlib import Path

import numpy as np
import pytest
import rank_pool
from rank_pool import good, with_ranks

from xcfast.envs import make_envs
from xcfast.output import checkpoint as ckpt
from xcfast.ranks.group import ALONE, Ranks
from xcfast.resources import update_threads
from xcfast.runs.state import joined, share

ROOT = Path(__file__).parents[2]
ADAM_EPS = 1e-5


# --- the pieces


def test_the_state_of_all_envs_is_shared_out_and_put_together_again():
    whole = {
        "rms": {"mean": np.zeros(2), "count": 3},
        "counters": np.arange(5),
        "envs": {"version": 1, "env_id": "X", "envs": [{"qpos": np.ones(3) * i} for i in range(5)], "obs": None},
    }
    parts = [share(whole, Ranks(rank, 3).rows(5)) for rank in range(3)]
    assert [len(part["counters"]) for part in parts] == [1, 2, 2]
    again = joined(parts)
    assert again["counters"].tolist() == [0, 1, 2, 3, 4] and again["rms"] is whole["rms"]
    assert [env["qpos"][0] for env in again["envs"]["envs"]] == [0, 1, 2, 3, 4]
    assert again["envs"]["version"] == 1 and again["envs"]["obs"] is None


def test_ranks_on_the_same_cpus_share_them(small, monkeypatch):
    monkeypatch.setattr("xcfast.resources.available_cpus", lambda: 8)
    monkeypatch.setattr("xcfast.envs.make.available_cpus", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    auto = small(num_threads=0, vectorize="MujocoVecEnv")
    assert [update_threads(auto, sharing) for sharing in (1, 2, 3, 16)] == [8, 4, 2, 1]
    assert update_threads(small(num_threads=3), 2) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert update_threads(auto, 2) == 1
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "torchrun")  # which sets OMP_NUM_THREADS=1 by itself
    assert update_threads(auto, 2) == 4
    envs = make_envs(auto, num_envs=5, sharing=4)
    assert envs.num_threads == 2 and envs.num_envs == 5
    envs.close()


# --- the same learning on any number of ranks


@pytest.mark.parametrize("learner", ["native", "torch", "cuda"])
def test_one_iteration_is_the_same_on_any_number_of_ranks(pool, native, learner):
    config = native(learner_backend="auto" if learner == "cuda" else learner, compile="off")
    iterate = rank_pool.cuda_update if learner == "cuda" else rank_pool.iterate
    one = iterate(ALONE, config)
    updates = config.n_epochs * config.n_minibatch
    for world_size in (2, 4):
        results = good(pool(world_size, with_ranks, iterate, config))
        first = {
            name: np.concatenate([result["first"][name] for result in results], axis=int(name not in _OF_ENVS))
            for name in one["first"]
        }
        for name, expected in one["first"].items():  # bit for bit
            np.testing.assert_array_equal(first[name], expected, err_msg=name)
        for result in results:
            for statistics in ("obs", "rewards"):
                for name, expected in one[statistics].items():
                    np.testing.assert_array_equal(result[statistics][name], expected, err_msg=name)
            for name, weights in result["weights"].items():
                np.testing.assert_array_equal(weights, results[0]["weights"][name])  # no rank differs from another
                # A gradient, of norm 0.5 at most, is off by a few roundings, and Adam divides that by at least its eps.
                bound = updates * config.learning_rate * 0.5 * 4 * np.finfo(np.float32).eps / ADAM_EPS
                np.testing.assert_allclose(weights, one["weights"][name], rtol=0, atol=bound)
            assert [step for step, _ in result["adam"]] == [updates] * len(one["adam"])
        np.testing.assert_array_equal(np.concatenate([result["returns"] for result in results]), one["returns"])


@pytest.mark.parametrize("learner", ["native", "torch", "cuda"])
def test_the_kl_divergence_is_that_of_all_ranks(pool, native, learner):
    """The limits are such that half the divergence, which is about one rank's part of two, would decide otherwise."""
    keys = {"learner_backend": "auto" if learner == "cuda" else learner, "compile": "off", "learning_rate": 3e-3}
    iterate = rank_pool.cuda_update if learner == "cuda" else rank_pool.iterate

    def both(**more):
        config = native(**keys, **more)
        (one,) = iterate(ALONE, config)["metrics"]
        for result in good(pool(2, with_ranks, iterate, config)):
            (metrics,) = result["metrics"]
            assert metrics == pytest.approx(one, rel=1e-3, abs=1e-5)
            yield one, result

    epochs = {"n_epochs": 3, "end_factor_lr_decay": 1.0}
    (kl, _), _ = both(agent="PPO_KL", **epochs)
    for one, _ in both(agent="PPO_KL", target_kl=kl["losses/kl"] / 1.2, **epochs):
        assert one["losses/kl"] > 1e-4
    config = native(agent="PPO_KL", target_kl=kl["losses/kl"] / 1.2, **keys, **epochs)
    for result in good(pool(2, with_ranks, iterate, config, *([] if learner == "cuda" else [2]))):
        for metrics in result["metrics"]:
            assert metrics["losses/kl_coef"] == 1.0  # neither doubled nor halved

    (first, _), _ = both(n_epochs=1, end_factor_lr_decay=1.0)
    limit = 0.8 * first["losses/approx_kl"]
    for one, result in both(early_stop_kl=True, target_kl=limit, **epochs):
        assert one["losses/epochs"] == 1 and {step for step, _ in result["adam"]} == {3}


@pytest.mark.parametrize("learner", ["native", "torch", "cuda"])
def test_the_adaptive_rate_is_that_of_all_ranks(pool, native, learner):
    """Half the divergence, which is about one rank's part of two, would decide otherwise."""
    keys = {"learner_backend": "auto" if learner == "cuda" else learner, "compile": "off", "learning_rate": 1e-3}
    iterate = rank_pool.cuda_update if learner == "cuda" else rank_pool.iterate
    (first,) = iterate(ALONE, native(lr_schedule="constant", **keys))["metrics"]
    for ratio, factor in ((0.8, 1.0), (3.0, 1 / 1.5)):  # of the KL to the one that is desired
        config = native(lr_schedule="kl", desired_kl=first["losses/approx_kl"] / ratio, **keys)
        (one, two) = good(pool(2, with_ranks, iterate, config, 2))
        rates = [[metrics["learning_rate"] for metrics in result["metrics"]] for result in (one, two)]
        assert rates[0] == rates[1] == [1e-3, 1e-3 * factor]
        for name, weights in one["weights"].items():
            np.testing.assert_array_equal(two["weights"][name], weights)


_OF_ENVS = ("last_obs", "counters")


@pytest.mark.parametrize("learner", ["native", "torch", "cuda"])
def test_masks_on_two_ranks(pool, native, learner):
    masked = {"env_id": "toys:toy/Masked-v0", "vectorize": "DummyVecEnv", "use_actions_mask": True}
    backend = {"learner_backend": "auto" if learner == "cuda" else learner, "compile": "off"}
    config = native(**masked, **backend, policy="Categorical_AC", use_obsnorm=False, agent="PPO_KL", ent_coef=0.01)
    iterate = rank_pool.cuda_update if learner == "cuda" else rank_pool.iterate
    one = iterate(ALONE, config)
    results = good(pool(2, with_ranks, iterate, config))
    actions = np.concatenate([result["first"]["actions"] for result in results], axis=1)
    np.testing.assert_array_equal(actions, one["first"]["actions"])
    bound = config.n_epochs * config.n_minibatch * config.learning_rate * 0.5 * 4 * np.finfo(np.float32).eps / ADAM_EPS
    for result in results:
        for name, weights in result["weights"].items():
            np.testing.assert_allclose(weights, one["weights"][name], rtol=0, atol=bound)


def test_colored_noise_on_any_number_of_ranks(pool, native):
    config = native(noise_beta=0.5)
    one = rank_pool.iterate(ALONE, config)["first"]["actions"]
    assert (one != rank_pool.iterate(ALONE, native())["first"]["actions"]).all()
    for world_size in (2, 4):
        results = good(pool(world_size, with_ranks, rank_pool.iterate, config))
        np.testing.assert_array_equal(np.concatenate([r["first"]["actions"] for r in results], axis=1), one)


@pytest.mark.parametrize("learner", ["native", "torch", "cuda"])
def test_a_clipped_value_loss_on_two_ranks(pool, native, learner):
    """The value loss is the mean of all ranks, and values are clipped to those of each rank's own rollout."""
    keys = {"learner_backend": "auto" if learner == "cuda" else learner, "compile": "off", "learning_rate": 1e-3}
    iterate = rank_pool.cuda_update if learner == "cuda" else rank_pool.iterate
    config = native(clip_value_range=1e-3, **keys)
    clipped, plain = iterate(ALONE, config), iterate(ALONE, native(**keys))
    assert clipped["metrics"][0]["losses/value_loss"] > 1.01 * plain["metrics"][0]["losses/value_loss"]
    for result in good(pool(2, with_ranks, iterate, config)):
        assert result["metrics"][0] == pytest.approx(clipped["metrics"][0], rel=1e-4, abs=1e-6)


def test_no_two_envs_share_a_trajectory(pool, native):
    results = good(pool(4, with_ranks, rank_pool.iterate, native(parallels=8)))
    actions = np.concatenate([result["first"]["actions"] for result in results], axis=1)
    obs = np.concatenate([result["first"]["obs"] for result in results], axis=1)
    for of_envs in (actions, obs):
        for step in (0, 7):
            assert len(np.unique(of_envs[step], axis=0)) == 8


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("learner", ["native", "torch"])
def test_the_gradient_is_that_of_DistributedDataParallel(pool, native, learner, world_size):
    one_minibatch = {"n_epochs": 1, "n_minibatch": 1, "use_grad_clip": False, "ent_coef": 0.01}
    results = good(pool(world_size, with_ranks, rank_pool.gradients, native(learner_backend=learner, **one_minibatch)))
    for ours, theirs in results:
        for gradient, expected in zip(ours, theirs, strict=True):
            scale = float(np.abs(expected).max())
            np.testing.assert_allclose(gradient, expected, rtol=0, atol=80 * np.finfo(np.float32).eps * scale)


def test_a_part_of_a_minibatch_may_be_empty(pool, native):
    keys = {"parallels": 4, "horizon_size": 4, "n_minibatch": 8}  # two steps a minibatch, shared by four ranks
    one = rank_pool.iterate(ALONE, native(**keys))
    for learner in ("native", "torch"):
        forced = native(**keys, learner_backend=learner)
        for result in good(pool(4, with_ranks, rank_pool.iterate, forced)):
            for name, weights in result["weights"].items():
                np.testing.assert_allclose(weights, one["weights"][name], rtol=0, atol=1e-5)


def test_torch_collector_on_two_ranks(pool, native):
    config = native(vectorize="DummyVecEnv", collector_backend="torch", use_obsnorm=False, use_rewnorm=False)
    one = rank_pool.iterate(ALONE, config)
    results = good(pool(2, with_ranks, rank_pool.iterate, config))
    obs = np.concatenate([result["first"]["obs"] for result in results], axis=1)
    np.testing.assert_allclose(obs, one["first"]["obs"], rtol=1e-4, atol=1e-5)  # torch's products depend on the shape


# --- the run


def test_a_run_goes_on_with_another_number_of_ranks(pool, native):
    half = native(running_steps=160, checkpoint_interval=1000)
    summary, other = good(pool(2, rank_pool.whole_run, half))
    assert summary["steps"] == other["steps"] == 160 and summary["log_dir"] == other["log_dir"]
    (checkpoint,) = ckpt.periodic_checkpoints(Path(summary["model_dir"]))
    longer = native(running_steps=320, checkpoint_interval=1000)
    runs = {
        world_size: good(pool(world_size, with_ranks, rank_pool.iterate, longer, 1, checkpoint))
        for world_size in (2, 4)
    }
    runs[1] = [rank_pool.iterate(ALONE, longer, 1, checkpoint)]
    for world_size in (1, 4):
        for name, expected in _joined(runs[2]).items():
            np.testing.assert_array_equal(_joined(runs[world_size])[name], expected, err_msg=name)
        assert runs[world_size][0]["step"] == 240
        for name in ("mean", "var", "count"):
            np.testing.assert_array_equal(runs[world_size][0]["obs"][name], runs[2][0]["obs"][name])
    assert good(pool(4, rank_pool.whole_run, longer, checkpoint))[0]["steps"] == 320


def _joined(results):
    return {
        name: np.concatenate([result["first"][name] for result in results], axis=int(name not in _OF_ENVS))
        for name in results[0]["first"]
    }


def test_a_signal_to_one_rank_stops_all_after_the_same_iteration(pool, native):
    results = good(pool(3, rank_pool.whole_run, native(), stop_on=1))
    assert [result["steps"] for result in results] == [240] * 3
    models = Path(results[0]["model_dir"])
    assert ckpt.load_checkpoint(ckpt.periodic_checkpoints(models)[-1])["step"] == 240
    assert not (models / ckpt.FINAL_MODEL).exists() and len(list(models.parent.iterdir())) == 1
    assert good(pool(2, rank_pool.whole_run, native(), resume=models))[0]["steps"] == 400


def test_envs_that_break_on_one_rank_end_the_run_saved(pool, native):
    config = native(vectorize="DummyVecEnv", checkpoint_interval=10_000)
    results = good(pool(2, rank_pool.whole_run, config, break_on=1))
    for message, _, known in results:
        assert known and "stopped at step 160: rank 1: ValueError: the simulator broke" in message
    assert [expected for _, expected, _ in results] == [True, False]  # rank 1 shows the traceback
    (path,) = Path(config.model_dir).glob("*/*/checkpoint_160.pth")
    assert ckpt.load_checkpoint(path)["step"] == 160


@pytest.mark.parametrize(("method", "steps"), [("iteration", 160), ("iteration", 80), ("evaluation", 80)])
def test_a_log_that_fails_on_rank_0_ends_the_run_saved(pool, native, method, steps):
    """It fails before an iteration, after the last one, or in the first evaluation, when nothing is trained yet."""
    config = native(running_steps=steps, eval_interval=80, test_episode=1)
    mode = "benchmark" if method == "evaluation" else "train"
    results = good(pool(2, rank_pool.whole_run, config, break_log=method, mode=mode))
    for message, _, known in results:
        assert known and "rank 0: OSError: nobody listens" in message
    saved = [path.name for path in Path(config.model_dir).glob("*/*/checkpoint_*.pth")]
    assert saved == ([] if method == "evaluation" else ["checkpoint_80.pth"])
