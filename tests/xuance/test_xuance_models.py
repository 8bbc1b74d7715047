"""Models that XuanCe 1.4.4 saved, in both of its forms (tests/data/README.md), and what is refused."""

import os
import pickle
import shutil
import subprocess
from argparse import Namespace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from xcfast.errors import CheckpointError
from xcfast.xuance import PPO_Agent, make_envs
from xcfast.xuance.finding import find_model_file
from xcfast.xuance.models import read_obs_rms

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "xuance"
KEYS = {
    "device": "cpu",
    "vectorize": "DummyVecEnv",
    "parallels": 4,
    "horizon_size": 32,
    "running_steps": 512,
    "n_epochs": 2,
    "n_minibatch": 4,
    "test_episode": 2,
    "num_threads": 1,
    "representation_hidden_size": [16],
    "actor_hidden_size": [16],
    "critic_hidden_size": [16],
}
OF = {
    "pendulum_dict": {"env_name": "Classic Control", "env_id": "Pendulum-v1"},
    "inverted_pendulum_bare": {"env_id": "InvertedPendulum-v4"},
    "cartpole_dict": {
        "env_name": "Classic Control",
        "env_id": "CartPole-v1",
        "policy": "Categorical_AC",
        "representation": "Basic_Identical",
        "representation_hidden_size": None,
    },
}


def arguments(tmp_path, name, **keys):
    folders = {"log_dir": str(tmp_path / "logs"), "model_dir": str(tmp_path / "models")}
    return Namespace(**{**KEYS, **OF[name], **folders, **keys})


def acting_agent(tmp_path, name, **keys):
    env = gymnasium.make(OF[name]["env_id"].replace("v4", "v5"))
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space}
    env.close()
    return PPO_Agent(arguments(tmp_path, name, **keys), quiet=True, **spaces)


def check_actions(agent, folder):
    """Statistics exactly; values and actions up to the rounding of XuanCe's float32.

    A normalized observation of at most 5 is rounded to within 1e-6, and each layer adds roundings of that size. These
    small networks stretch a difference by less than 4.
    """
    expected = np.load(folder / "expected.npz")
    np.testing.assert_array_equal(agent.obs_rms.mean, expected["mean"].astype(np.float64))
    np.testing.assert_array_equal(agent.obs_rms.var, expected["var"].astype(np.float64))
    assert agent.obs_rms.count == round(float(expected["count"])) == 4096
    np.testing.assert_array_equal(agent.obs_rms.deviation, np.sqrt(expected["var"].astype(np.float64)) + 1e-8)
    out = agent.get_actions(expected["observations"], deterministic=True)
    np.testing.assert_allclose(out["actions"], expected["actions"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(out["values"], expected["values"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", OF)
def test_actions_are_those_of_xuance(tmp_path, name):
    agent = acting_agent(tmp_path, name)
    agent.load_model(DATA / name)
    check_actions(agent, DATA / name)


def xuance_python():
    """An interpreter with XuanCe: XCFAST_XUANCE_PYTHON, or the one that ``make peers`` prepares."""
    path = Path(os.environ.get("XCFAST_XUANCE_PYTHON", ROOT / ".peers" / "xuance" / "bin" / "python"))
    if not path.exists():
        pytest.skip(f"XuanCe is not installed ({path}); make peers installs it")
    return path


@pytest.mark.timeout(300)
def test_actions_are_those_of_the_installed_xuance(tmp_path):
    python = xuance_python()
    environment = {**os.environ, "PYTHONPATH": "", "PYTHONWARNINGS": ""}
    done = subprocess.run(
        [python, DATA / "make.py", tmp_path / "made"], env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr
    for name in OF:
        agent = acting_agent(tmp_path, name)
        agent.load_model(tmp_path / "made" / name)
        check_actions(agent, tmp_path / "made" / name)


class Recorder(gymnasium.Wrapper):
    """Keeps the actions that reach the environment."""

    actions: list = []  # noqa: RUF012

    def step(self, action):
        self.actions.append(np.array(action))
        return super().step(action)


gymnasium.register(
    "recorded/Pendulum-v1",
    lambda **kwargs: Recorder(gymnasium.make("Pendulum-v1", **kwargs)),
    max_episode_steps=20,
)


def test_a_model_is_converted_without_playing(tmp_path):
    args = arguments(tmp_path, "pendulum_dict", env_id="Pendulum-v1", vectorize="ClassicControlVecEnv")
    envs = make_envs(args)
    agent = PPO_Agent(args, envs, quiet=True)
    agent.load_model(DATA / "pendulum_dict")
    agent.save_model("converted.pth", tmp_path)
    again = acting_agent(tmp_path, "pendulum_dict")
    again.load_model(tmp_path / "converted.pth")
    for name, value in agent.policy.state_dict().items():
        assert torch.equal(again.policy.state_dict()[name], value)
    agent.finish()
    envs.close()


def test_a_policy_from_xuance_keeps_its_map_of_actions(tmp_path):
    """Pendulum's bounds are +-2: a policy trained here is stretched to them, one from XuanCe is not, also later."""
    keys = {"env_id": "recorded/Pendulum-v1"}
    args = arguments(tmp_path, "pendulum_dict", **keys)

    def played(agent):
        Recorder.actions.clear()
        agent.test(lambda: make_envs(args), 1)
        return np.array(Recorder.actions)

    envs = make_envs(args)
    agent = PPO_Agent(args, envs, quiet=True)
    agent.load_model(DATA / "pendulum_dict")
    expected = played(agent)
    assert len(expected) and np.abs(expected).max() <= 1.0
    agent.save_model("kept.pth")

    again = PPO_Agent(args, envs, quiet=True)
    with pytest.warns(RuntimeWarning, match="clipped but not normalized"):
        assert again.get_actions(np.zeros((1, 3)))["actions"].shape == (1, 1)
    again.load_model(agent.model_dir_save, "kept.pth")
    np.testing.assert_array_equal(played(again), expected)
    obs = np.load(DATA / "pendulum_dict" / "expected.npz")["observations"]
    own = acting_agent(tmp_path, "pendulum_dict")
    own.policy.load_state_dict(again.policy.state_dict())
    own.obs_rms.load_state_dict(again.obs_rms.state_dict())
    stretched = own.get_actions(obs, deterministic=True)["actions"]
    np.testing.assert_allclose(stretched, 2 * again.get_actions(obs, deterministic=True)["actions"], rtol=1e-6)
    for one in (agent, again):
        one.finish()
    envs.close()


def test_native_engines_and_torch_agree_on_a_loaded_model_also_while_training(tmp_path):
    """The native collector has the action map built in: it must be made anew, at the start and in the middle."""
    weights, scores = {}, {}
    for backend in ("torch", "native"):
        keys = {"vectorize": "MujocoVecEnv", "collector_backend": backend, "learner_backend": backend}
        args = arguments(tmp_path, "inverted_pendulum_bare", **keys)
        envs = make_envs(args)
        agent = PPO_Agent(args, envs, quiet=True)
        agent.train(40)  # with the own map, into the second rollout, whose 8 steps are dropped
        agent.load_model(DATA / "inverted_pendulum_bare")
        scores[backend] = agent.test(lambda args=args: make_envs(args), 2)
        agent.train(32)
        weights[backend] = agent.policy.actor.mu[0].weight.detach().clone()
        assert agent.current_step == 64 * 4 and agent.learner.name == backend
        agent.finish()
        envs.close()
    # float32: an update of 8 Adam steps of 4e-4 from inputs that agree to rounding
    torch.testing.assert_close(weights["torch"], weights["native"], rtol=0, atol=1e-5)
    assert scores["torch"] == scores["native"]  # lengths of short episodes: rounding does not change a count of steps


def test_the_optimizers_moments_come_along(tmp_path):
    saved = torch.load(DATA / "pendulum_dict" / "final_train_model.pth", weights_only=True)
    args = arguments(tmp_path, "pendulum_dict")
    envs = make_envs(args)
    for learner in ("native", "torch"):
        agent = PPO_Agent(Namespace(**{**vars(args), "learner_backend": learner}), envs, quiet=True)
        agent.load_model(DATA / "pendulum_dict")
        state = agent.learner.state_dict()["optimizer"]
        assert state["state"].keys() == saved["optimizer"]["state"].keys()
        for index, moments in saved["optimizer"]["state"].items():
            assert torch.equal(state["state"][index]["exp_avg_sq"], moments["exp_avg_sq"])
            assert int(state["state"][index]["step"]) == int(moments["step"]) > 0
        assert state["param_groups"][0]["lr"] == 4e-4  # the script's, not the file's 1e-3
        agent.finish()
    envs.close()


def test_weights_of_distributed_training_have_another_prefix(tmp_path):
    folder = tmp_path / "ddp"
    shutil.copytree(DATA / "pendulum_dict", folder)
    state = torch.load(folder / "final_train_model.pth", weights_only=True)
    state["policy"] = {name.replace(".", ".module.", 1): value for name, value in state["policy"].items()}
    torch.save(state, folder / "final_train_model.pth")
    agent = acting_agent(tmp_path, "pendulum_dict")
    agent.load_model(folder)
    check_actions(agent, DATA / "pendulum_dict")


def test_another_network_is_one_sentence(tmp_path):
    agent = acting_agent(tmp_path, "pendulum_dict", actor_hidden_size=[32, 8])
    before = agent.policy.actor.mu[0].weight.detach().clone()
    with pytest.raises(CheckpointError) as caught:
        agent.load_model(DATA / "pendulum_dict")
    assert str(caught.value).endswith(
        "another network: found representation 3-16, actor 16-16-1, critic 16-16-1; "
        "expected representation 3-16, actor 16-32-8-1, critic 16-16-1"
    )
    assert torch.equal(agent.policy.actor.mu[0].weight, before)
    with pytest.raises(CheckpointError, match=r"found representation 3-16.*expected representation 4-16"):
        acting_agent(tmp_path, "inverted_pendulum_bare").load_model(DATA / "pendulum_dict")


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def write_object(path, value):
    np.save(path, np.array(value, dtype=object), allow_pickle=True)


@pytest.mark.parametrize("place", ["obs_rms", "model"])
def test_nothing_in_a_file_is_executed(tmp_path, place):
    folder, target = tmp_path / "model", tmp_path / "executed"
    shutil.copytree(DATA / "pendulum_dict", folder)
    if place == "obs_rms":
        write_object(folder / "obs_rms.npy", {"count": 1.0, "mean": Bomb(target), "var": np.ones(3)})
    else:
        torch.save({"policy": {"w": Bomb(target)}}, folder / "final_train_model.pth")
    with pytest.raises(CheckpointError, match=r"only numpy arrays are allowed|only tensors") as caught:
        acting_agent(tmp_path, "pendulum_dict").load_model(folder)
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)  # what would execute it
    assert not target.exists()
    pickle.loads(pickle.dumps(Bomb(target)))
    assert target.exists()  # it would have


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"count": 3.0, "mean": np.zeros(3)}, "not statistics of observations"),
        ([1, 2], "not statistics of observations"),
        ({"count": 3.0, "mean": np.full(3, np.nan), "var": np.ones(3)}, "must be finite"),
        ({"count": -1.0, "mean": np.zeros(3), "var": np.ones(3)}, "must be finite"),
        ({"count": "many", "mean": np.zeros(3), "var": np.ones(3)}, "must be numbers"),
        (np.ones(3), "not one object"),
        (b"no array at all", "cannot be read"),
    ],
)
def test_bad_statistics_are_one_sentence(tmp_path, content, message):
    path = tmp_path / "obs_rms.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        value = np.empty((), object)
        value[()] = content
        np.save(path, value, allow_pickle=True)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_obs_rms(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_statistics_that_are_missing_or_of_other_observations(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(DATA / "pendulum_dict", folder)
    write = {"count": 3.0, "mean": np.zeros(4), "var": np.ones(4)}
    write_object(folder / "obs_rms.npy", write)
    with pytest.raises(CheckpointError, match=r"observations of shape \[4\]; expected \[3\]"):
        acting_agent(tmp_path, "pendulum_dict").load_model(folder)
    (folder / "obs_rms.npy").unlink()
    with pytest.raises(CheckpointError, match=r"obs_rms.npy: no such file"):
        acting_agent(tmp_path, "pendulum_dict").load_model(folder)
    acting_agent(tmp_path, "pendulum_dict", use_obsnorm=False).load_model(folder)


def test_a_damaged_model_is_one_sentence(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(DATA / "pendulum_dict", folder)
    model = folder / "final_train_model.pth"
    whole = model.read_bytes()
    model.write_bytes(whole[:9000])
    with pytest.raises(CheckpointError, match=r"truncated, or not a model file"):
        acting_agent(tmp_path, "pendulum_dict").load_model(folder)
    torch.save([1, 2], model)
    with pytest.raises(CheckpointError, match=r"neither a model of xcfast nor one of XuanCe"):
        acting_agent(tmp_path, "pendulum_dict").load_model(folder)
    model.write_bytes(b"no model at all")
    with pytest.raises(CheckpointError, match=r"truncated, or not a model file of torch") as caught:
        acting_agent(tmp_path, "pendulum_dict").load_model(folder)
    assert "weights_only" not in str(caught.value)


def state_of(agent):
    """Everything that loading can change, as plain copies."""
    state = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    state |= {f"obs_{name}": torch.tensor(value) for name, value in agent.obs_rms.state_dict().items()}
    return state | {
        "var": torch.tensor(agent.ret_rms.var),
        "identity": torch.tensor(agent._acting().action_map.identity),
    }


def of_xcfast(tmp_path, change):
    """A model file of xcfast with something changed in it, and an agent that it is for."""
    args = arguments(tmp_path, "pendulum_dict")
    envs = make_envs(args)
    agent = PPO_Agent(args, envs, quiet=True)
    agent.train(32)
    agent.save_model("whole.pth", tmp_path)
    state = torch.load(tmp_path / "whole.pth", weights_only=True)
    change(state)
    torch.save(state, tmp_path / "changed.pth")
    agent.train(32)
    return agent, envs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["policy"]["actor.logstd"].fill_(np.nan), r"policy.actor.logstd: .*; wanted: an array, finite$"),
        (
            lambda s: s["obs_normalizer"]["rms"].update(var=torch.ones(2, dtype=torch.float64)),
            r"obs_normalizer.rms.var: found float64 \[2\]; wanted: the shape \[3\]$",
        ),
        (lambda s: s["obs_normalizer"]["rms"]["var"].fill_(np.inf), "obs_normalizer.rms.var: .*finite, >= 0$"),
        (lambda s: s["obs_normalizer"].clear(), "obs_normalizer: .*; wanted: a dict with rms$"),
        (
            lambda s: s["reward_normalizer"]["rms"].update(
                dict.fromkeys(("mean", "var"), torch.ones(2, dtype=torch.float64))
            ),
            r"reward_normalizer.rms.mean: found float64 \[2\]; wanted: the shape \[\]$",
        ),
        (lambda s: s.update(policy=[1]), r"policy: found \[1\]; wanted: a dict$"),
        (lambda s: s["policy"].update(strange=torch.ones(2)), r"it has strange \[2\], which is unknown$"),
    ],
)
def test_a_model_that_cannot_be_loaded_leaves_the_agent_as_it_was(tmp_path, change, message):
    agent, envs = of_xcfast(tmp_path, change)
    before = state_of(agent)
    with pytest.raises(CheckpointError, match=message) as caught:
        agent.load_model(tmp_path / "changed.pth")
    assert str(caught.value).startswith(str(tmp_path / "changed.pth"))
    after = state_of(agent)
    assert all(torch.equal(before[name], after[name]) for name in before)
    agent.finish()
    envs.close()


def test_statistics_of_two_shapes_leave_the_agent_as_it_was(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(DATA / "pendulum_dict", folder)
    write_object(folder / "obs_rms.npy", {"count": 3.0, "mean": np.zeros(3), "var": np.ones(4)})
    agent = acting_agent(tmp_path, "pendulum_dict")
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"obs_rms.npy: mean has the shape \[3\], var the shape \[4\]"):
        agent.load_model(folder)
    assert all(torch.equal(before[name], value) for name, value in agent.policy.state_dict().items())


def test_moments_that_do_not_fit_are_left_out(tmp_path):
    def change(state):
        state["learner"]["optimizer"]["state"][0] |= {"exp_avg": torch.ones(5), "exp_avg_sq": torch.ones(5)}

    agent, envs = of_xcfast(tmp_path, change)
    before = agent.learner.state_dict()["optimizer"]["state"][0]["exp_avg"].clone()
    agent.load_model(tmp_path / "changed.pth")
    assert torch.equal(agent.learner.state_dict()["optimizer"]["state"][0]["exp_avg"], before)
    agent.load_model(tmp_path / "whole.pth")
    assert not torch.equal(agent.learner.state_dict()["optimizer"]["state"][0]["exp_avg"], before)
    agent.finish()
    envs.close()


def test_other_names_of_weights_are_listed(tmp_path):
    """As of XuanCe's development version, which calls a parameter otherwise."""
    state = torch.load(DATA / "inverted_pendulum_bare" / "final_train_model.pth", weights_only=True)
    folder = tmp_path / "model"
    shutil.copytree(DATA / "inverted_pendulum_bare", folder)
    state["actor.log_std"] = state.pop("actor.logstd")
    torch.save(state, folder / "final_train_model.pth")
    with pytest.raises(CheckpointError) as caught:
        acting_agent(tmp_path, "inverted_pendulum_bare").load_model(folder)
    assert str(caught.value).endswith(
        "another network of the same widths: it has actor.log_std [1], which is unknown; it lacks actor.logstd [1]"
    )


# Finding a file


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")


def test_models_are_found_by_any_of_their_names(tmp_path):
    touch(tmp_path / "seed_5_2026_0714_101500", "best_model.pth", "mine", "other.pth")
    touch(tmp_path / "seed_7_2026_0714_101500", "final_train_model.pth")
    touch(tmp_path / "results" / "seed_1" / "best_model", "best_model.pth")

    def found(path, model=None, seed=5):
        return find_model_file(tmp_path / path, model, seed).relative_to(tmp_path).as_posix()

    assert found("seed_5_2026_0714_101500", "mine") == "seed_5_2026_0714_101500/mine"  # as save_model("mine") names it
    assert found(".", "mine") == "seed_5_2026_0714_101500/mine"
    assert found(".", "other") == found(".", "other.pth") == "seed_5_2026_0714_101500/other.pth"
    assert found(".", "seed_7_2026_0714_101500") == "seed_7_2026_0714_101500/final_train_model.pth"
    assert (
        found(".", "7") == found(".", 7) == found(".", np.int64(7)) == "seed_7_2026_0714_101500/final_train_model.pth"
    )
    assert found("results", "1") == found("results", seed=1) == "results/seed_1/best_model/best_model.pth"
    touch(tmp_path / "seed_5_2026_0714_101500", "7")
    assert found(".", "7") == "seed_5_2026_0714_101500/7"  # the exact name goes first


def test_what_is_not_found_is_one_sentence(tmp_path):
    run_folder = tmp_path / "seed_5_2026_0714_101500"
    touch(run_folder, "best_model.pth", "x.pth")
    for place, model, message in (
        (run_folder, "other", f"{run_folder}: no other.pth in it; there: best_model.pth, x.pth"),
        (tmp_path, "x.pth", f"{tmp_path}: no x.pth of seed 9 in it; seeds with one there: 5"),
        (tmp_path, "79811", f"{tmp_path}: no model file of seed 79811 in it; seeds with one there: 5"),
        (tmp_path, None, f"{tmp_path}: no model file of seed 9 in it; seeds with one there: 5"),
    ):
        with pytest.raises(CheckpointError) as caught:
            find_model_file(place, model, 9)
        assert str(caught.value) == message
    with pytest.raises(TypeError, match="path must be a model file or a folder; got None"):
        find_model_file(None, None, 1)
    with pytest.raises(TypeError, match=r"model must be a file's name, a seed or None; got 1.5"):
        find_model_file(tmp_path, 1.5, 1)
