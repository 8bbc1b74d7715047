"""Compiled tasks against the same functions as Python: every number, for every example."""

import ctypes
import sys
import threading
from pathlib import Path

import cheetah_tasks
import gymnasium
import numpy as np
import pytest
from collecting import Collecting

from xcfast.envs import DummyVecEnv, MujocoVecEnv, SubprocVecEnv, make_env_fn
from xcfast.envs.registration import MUJOCO_IDS
from xcfast.tasks import GymnasiumTask, TaskEnv, compiled

EXAMPLES = Path(__file__).parents[2] / "examples" / "tasks"
sys.path.append(str(EXAMPLES))

TASKS = [
    "run_backwards:RunBackwards-v0",
    "swing_up:SwingUp-v0",
    "ball_table:BallTable-v0",
    "pd_walker:PDWalker-v0",
    "cheetah_terms:CheetahAtSpeed-v0",
    "cheetah_terms:SameCheetah-v0",
    "quadruped:Quadruped-v0",
    "tolerance_reach:StandAndWalk-v0",
]
# Tasks that square a number by `** 2`, which is libm's pow in Python and a product in compiled code. The last place may
# differ, and a product of five such factors below 1 by at most eight places.
POWERS = {"tolerance_reach:StandAndWalk-v0"}
NUM_ENVS = 3


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory):
    """One folder of machine code for the module's tests, empty at first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XCFAST_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield


def actions_for(envs, steps, seed=0):
    space, rng = envs.action_space, np.random.default_rng(seed)
    return rng.uniform(space.low, space.high, (steps, *space.shape)).astype(np.float32)


def play(envs, steps, seed=0):
    """All that a vector environment returns in an episode's start and `steps` steps."""
    rows = [envs.reset(seed=11)]
    rows += [envs.step(action) for action in actions_for(envs, steps, seed)]
    return rows


def assert_same(native, python, reward_ulps=0, reward_error=0.0):
    np.testing.assert_array_equal(native[0][0], python[0][0])
    for step, (ours, theirs) in enumerate(zip(native[1:], python[1:], strict=True)):
        np.testing.assert_array_equal(ours[0], theirs[0], err_msg=f"observations of step {step}")
        np.testing.assert_allclose(ours[1], theirs[1], rtol=reward_ulps * 2.0**-52, atol=reward_error)
        np.testing.assert_array_equal(ours[2], theirs[2])
        np.testing.assert_array_equal(ours[3], theirs[3])
        assert ours[4].keys() == theirs[4].keys()
        for index, ob in enumerate(ours[4].get("final_obs", ())):
            np.testing.assert_array_equal(ob, theirs[4]["final_obs"][index])


@pytest.mark.parametrize("env_id", TASKS)
def test_compiled_functions_give_the_numbers_of_python(env_id):
    native = MujocoVecEnv(env_id, NUM_ENVS, 2, infos=True, max_episode_steps=60)
    python = DummyVecEnv([make_env_fn(env_id, max_episode_steps=60)] * NUM_ENVS, infos=True)
    ours, theirs = play(native, 150), play(python, 150)
    assert any((step[2] | step[3]).any() for step in theirs[1:])  # episodes end, so resets take part
    assert_same(ours, theirs, 8 if env_id in POWERS else 0)
    names = native.get_attr("metadata") and make_env_fn(env_id)().unwrapped.term_names
    for name in names:
        np.testing.assert_allclose(ours[7][4][name], theirs[7][4][name], rtol=8 * 2.0**-52 if env_id in POWERS else 0)
    native.close()
    python.close()


def test_all_of_the_language_gives_the_numbers_of_python():
    native = MujocoVecEnv(cheetah_tasks.Language, 2, 1)
    python = DummyVecEnv([make_env_fn(cheetah_tasks.Language)] * 2)
    ours, theirs = play(native, 120), play(python, 120)
    # np.dot and `@` add up eight products one by one, BLAS in an order of its own. No sum reaches 512, so that eight
    # roundings on either side are at most 16 * 512 * 2**-53.
    assert_same(ours, theirs, reward_error=16 * 512 * 2.0**-53)
    assert any(step[2].any() for step in theirs[1:])


def test_usual_ways_to_write_give_the_numbers_of_python():
    native = MujocoVecEnv(cheetah_tasks.Idioms, 2, 1)
    python = DummyVecEnv([make_env_fn(cheetah_tasks.Idioms)] * 2)
    assert_same(play(native, 120), play(python, 120), reward_error=16 * 512 * 2.0**-53)


def test_contacts_are_part_of_the_state():
    """What before_step reads of contacts is that of the last physics step, which a restored simulation has not done."""
    kinds = [MujocoVecEnv(cheetah_tasks.ReadsContactsBefore, 3, 1)]
    kinds += [DummyVecEnv([make_env_fn(cheetah_tasks.ReadsContactsBefore)] * 3)]
    for envs in kinds:
        play(envs, 60)
        state = envs.get_state()
        later = actions_for(envs, 3, seed=2)
        wanted = [envs.step(action) for action in later]
        assert wanted[0][1].any()
        for other in kinds:
            other.reset(seed=9)
            other.set_state(state)
            assert_same([(0,), *(other.step(action) for action in later)], [(0,), *wanted])


def test_observations_are_the_callers():
    env = make_env_fn(cheetah_tasks.LivesOnViews)()
    first, _ = env.reset(seed=0)
    kept = first.copy()
    env.step(env.action_space.sample())
    np.testing.assert_array_equal(first, kept)


def test_memory_and_terms_can_be_looked_at():
    native = MujocoVecEnv("ball_table:BallTable-v0", 2, 1)
    play(native, 3)
    assert [int(memory.steps) for memory in native.get_attr("memory")] == [3, 3]
    assert [float(terms.alive) for terms in native.get_attr("terms")] == [0.1, 0.1]
    assert native.get_attr("task")[0].goal_steps == 100


def same_reward_as(env_id):
    class Same(GymnasiumTask):
        def before_step(self, data, action, memory):
            data.qvel[0] += 0.01

        def step(self, data, action, memory, terms):
            return terms.reward, terms.terminated > 0

    Same.env_id = env_id
    return Same


@pytest.mark.parametrize("env_id", [one for one in MUJOCO_IDS if one != "Pusher-v4"])  # which needs an older MuJoCo
def test_terms_of_every_task_of_gymnasium(env_id):
    kind = same_reward_as(env_id)
    native = MujocoVecEnv(kind, 2, 1, infos=True, check=False)
    python = DummyVecEnv([make_env_fn(kind)] * 2, infos=True)
    assert native.spec.max_episode_steps == gymnasium.spec(env_id).max_episode_steps
    for ours, theirs in zip(play(native, 30)[1:], play(python, 30)[1:], strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_allclose(ours[1], theirs[1], rtol=2.0**-23)  # MujocoVecEnv's own promise for arms
        assert ours[4].keys() == theirs[4].keys()
        for name in {*python.get_attr("term_names")[0]} & ours[4].keys():
            np.testing.assert_allclose(ours[4][name], theirs[4][name], rtol=2.0**-23, err_msg=name)


def test_the_reward_of_gymnasium_is_put_together_from_its_terms():
    native = MujocoVecEnv("cheetah_terms:SameCheetah-v0", 2, 1)
    built_in = MujocoVecEnv("HalfCheetah-v5", 2, 1)
    for ours, theirs in zip(play(native, 40)[1:], play(built_in, 40)[1:], strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        # The reward of Gymnasium subtracts a float32 from a float64: the same numbers in either order of conversion.
        np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_do_not_change_a_number(threads):
    one = play(MujocoVecEnv("quadruped:Quadruped-v0", 5, 1), 40)
    many = play(MujocoVecEnv("quadruped:Quadruped-v0", 5, threads), 40)
    assert_same(many, one)


@pytest.mark.parametrize("env_id", ["pd_walker:PDWalker-v0", "cheetah_terms:CheetahAtSpeed-v0"])
def test_a_state_goes_from_native_to_python_and_back(env_id):
    native = MujocoVecEnv(env_id, 2, 1, max_episode_steps=30)
    python = DummyVecEnv([make_env_fn(env_id, max_episode_steps=30)] * 2)
    play(native, 17)
    python.reset(seed=5)
    python.set_state(native.get_state())
    later = actions_for(native, 50, seed=3)
    ours, theirs = [native.step(one) for one in later], [python.step(one) for one in later]
    assert_same([(0,), *ours], [(0,), *theirs])
    native.set_state(python.get_state())
    ours, theirs = [native.step(one) for one in later], [python.step(one) for one in later]
    assert_same([(0,), *ours], [(0,), *theirs])


def test_next_step_autoreset():
    kwargs = {"autoreset_mode": "next_step"}
    native = MujocoVecEnv("ball_table:BallTable-v0", 2, 1, **kwargs)
    python = DummyVecEnv([make_env_fn("ball_table:BallTable-v0")] * 2, **kwargs)
    ours, theirs = play(native, 150), play(python, 150)
    assert any(step[2].any() for step in theirs[1:])
    assert_same(ours, theirs)


def test_one_environment_is_gymnasiums():
    env = gymnasium.make("quadruped:Quadruped-v0")
    assert type(env.unwrapped) is TaskEnv
    obs, info = env.reset(seed=3)
    assert obs in env.observation_space
    assert info == {}
    _, reward, _, _, info = env.step(env.action_space.sample())
    assert sum(info.values()) == pytest.approx(reward, rel=1e-12)
    assert list(info) == list(env.unwrapped.term_names)


def test_make_vec_makes_the_native_one():
    envs = gymnasium.make_vec("run_backwards:RunBackwards-v0", num_envs=3)
    assert type(envs) is MujocoVecEnv
    limit = envs.spec.max_episode_steps
    assert (envs.num_envs, limit) == (3, 1000)
    envs.close()


def test_worker_processes_step_the_same_task():
    native = MujocoVecEnv("ball_table:BallTable-v0", 2, 1)
    workers = SubprocVecEnv([make_env_fn("ball_table:BallTable-v0")] * 2)
    assert_same(play(native, 60), play(workers, 60))
    workers.close()


def test_parameters_change_the_task_without_compiling_again(monkeypatch):
    play(MujocoVecEnv("run_backwards:RunBackwards-v0", 1, 1), 1)
    loaded = compiled._load.cache_info().misses
    native = MujocoVecEnv("run_backwards:RunBackwards-v0", 1, 1, control_weight=0.7)
    python = DummyVecEnv([make_env_fn("run_backwards:RunBackwards-v0", control_weight=0.7)])
    assert_same(play(native, 20), play(python, 20))
    assert compiled._load.cache_info().misses == loaded


def test_terms_are_means_since_the_last_call():
    native = MujocoVecEnv("run_backwards:RunBackwards-v0", 2, 1, infos=True)
    assert native.take_reward_terms() == {}
    rows = play(native, 10)[1:]
    terms = native.take_reward_terms()
    for name in ("forward", "control"):
        assert terms[name] == pytest.approx(np.mean([row[4][name] for row in rows]), rel=1e-12)
    assert native.take_reward_terms() == {}
    assert MujocoVecEnv("HalfCheetah-v5", 1, 1).take_reward_terms() == {}


def test_a_step_never_takes_the_gil(small):
    """A thread collects while another holds the GIL in a C function: rewards are written meanwhile."""
    config = small(env_id="quadruped:Quadruped-v0", horizon_size=4000, running_steps=16_000, parallels=4)
    native = MujocoVecEnv(config.env_id, 4, 2, copy=False)
    collecting = Collecting(config, native, "native")
    collecting.collector.reset(0)
    rewards = collecting.rollout.rewards
    rewards[:] = np.nan
    sleep_with_gil = ctypes.PyDLL(None).usleep
    thread = threading.Thread(target=collecting.collector.collect, args=(collecting.rollout,))
    thread.start()
    while np.isnan(rewards).all():
        pass
    before = np.isfinite(rewards).sum()
    sleep_with_gil(80_000)  # microseconds; native code comes back for signals every 100 ms
    after = np.isfinite(rewards).sum()
    thread.join()
    assert after - before > 10


def test_one_task_compiles_while_another_steps(monkeypatch, tmp_path):
    """The threads of one vector environment step on while numba compiles, and give the same numbers."""
    wanted = play(MujocoVecEnv("pd_walker:PDWalker-v0", 4, 2), 60)
    envs, found, stop = MujocoVecEnv("pd_walker:PDWalker-v0", 4, 2), [], threading.Event()

    def step():
        while not stop.is_set():
            found.append(play(envs, 60))

    thread = threading.Thread(target=step)
    thread.start()
    try:
        monkeypatch.setenv("XCFAST_CACHE_DIR", str(tmp_path))  # where nothing is compiled yet
        compiled._load.cache_clear()
        language = play(MujocoVecEnv(cheetah_tasks.Language, 1, 2, check=False), 5)
    finally:
        stop.set()
        thread.join()
    assert_same(language, play(DummyVecEnv([make_env_fn(cheetah_tasks.Language)]), 5), reward_error=16 * 512 * 2.0**-53)
    assert found
    for one in found:
        assert_same(one, wanted)
