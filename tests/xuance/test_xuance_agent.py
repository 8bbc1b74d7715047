"""The agent of xcfast.xuance: the parts that a script brings are used, and the run is that of the command line."""

import csv
import inspect
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from xcfast.config import ConfigError
from xcfast.envs import make_env_fn
from xcfast.errors import CheckpointError, NonFiniteError
from xcfast.learners.schedule import learning_rate
from xcfast.output.checkpoint import load_checkpoint, periodic_checkpoints, save_checkpoint
from xcfast.policy import build_policy
from xcfast.runs.run import run, train_to_the_end
from xcfast.runs.trainer import Trainer
from xcfast.xuance import (
    ActivationFunctions,
    Basic_MLP,
    Gaussian_AC_Policy,
    PPO_Agent,
    PPOCLIP_Agent,
    PPOKL_Agent,
    RunnerDRL,
    get_total_iters,
    make_envs,
    space2shape,
)

UPDATES_PER_ROLLOUT = 2 * 4  # of the small configuration, whose rollout has 32 steps of 4 envs


def arguments(config, **more):
    return Namespace(**{**config.to_dict(), **more})


def by_hand(args, envs):
    """The page's policy: made piece by piece, with an unbounded mean."""
    torch.manual_seed(3)
    activation = ActivationFunctions[args.activation]
    shape = {"initialize": torch.nn.init.orthogonal_, "activation": activation, "device": args.device}
    trunk = Basic_MLP(space2shape(envs.observation_space), args.representation_hidden_size, **shape)
    return Gaussian_AC_Policy(envs.action_space, trunk, args.actor_hidden_size, args.critic_hidden_size, **shape)


@pytest.fixture
def make_agent(small):
    """``make_agent(optimizer, scheduler, **keys)``: an agent by hand; the two are called with what they are for."""
    made = []

    def make(optimizer=None, scheduler=None, **keys):
        args = arguments(small(**keys))
        envs = make_envs(args)
        policy = by_hand(args, envs)
        parts = {}
        if optimizer is not None:
            parts["optimizer"] = optimizer(policy.parameters())
        if scheduler is not None:
            parts["scheduler"] = scheduler(parts["optimizer"])
        make.scheduler = parts.get("scheduler")
        agent = PPOCLIP_Agent(config=args, envs=envs, policy=policy, device=args.device, quiet=True, **parts)
        made.append((agent, envs))
        return agent

    yield make
    for agent, envs in made:
        agent.finish()
        envs.close()


def adam(parameters):
    return torch.optim.Adam(parameters, 4e-4, eps=1e-5)


def falling(optimizer):
    return torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=32)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("vectorize", ["DummyVecEnv", "MujocoVecEnv"])
def test_training_in_pieces_is_the_run_of_the_command_line(small, vectorize):
    """Bit for bit, and so are the evaluations between: 7 steps at a time, where a rollout has 32."""
    config = small(vectorize=vectorize, eval_interval=128)
    summary = run(config, quiet=True)
    reference = load_checkpoint(Path(summary.model_dir) / "final_train_model.pth")
    with open(Path(summary.log_dir) / "test_scores.csv", newline="", encoding="utf-8") as file:
        scores = [[float(x) for x in row[1:]] for row in csv.reader(file) if row[0] != "step"]

    args = arguments(config, benchmark=1)
    envs, test_envs = make_envs(args), make_envs(Namespace(**{**vars(args), "parallels": 2}))
    envs.reset()
    agent = PPO_Agent(args, envs, quiet=True)
    found = [agent.test(test_episodes=2, test_envs=test_envs, close_envs=False)]
    for _ in range(4):
        for steps in (7, 7, 7, 7, 4):
            agent.train(steps)
        found.append(agent.test(test_episodes=2, test_envs=test_envs, close_envs=False))
    assert found == scores
    assert same(agent.policy.state_dict(), reference["policy"])
    assert same(agent.learner.state_dict()["optimizer"]["state"][0], reference["learner"]["optimizer"]["state"][0])
    assert agent.current_step == 512 and agent.obs_rms.count == reference["obs_normalizer"]["rms"]["count"]
    assert agent.ret_rms.var == reference["reward_normalizer"]["rms"]["var"].numpy()
    # what a run leaves, an agent leaves
    agent.finish()
    envs.close()
    test_envs.close()
    curve = (Path(agent.log_dir) / "learning_curve.csv").read_text()
    assert curve == (Path(summary.log_dir) / "learning_curve.csv").read_text()
    assert {"summary.json", "config.json", "meta_data.json", "test_scores.csv"} <= {
        path.name for path in Path(agent.log_dir).iterdir()
    }


def test_the_rollout_survives_between_calls(make_agent):
    agent = make_agent()
    assert agent.train(20) == {} and agent.current_step == 80 and agent.memory.step == 20
    logged = agent.train(20)
    assert logged["losses/policy_loss"] == logged["actor_loss"]
    assert agent.current_step == 160 and agent.memory.step == 8
    assert agent.current_episode.shape == (4,) and agent.current_episode.sum() > 0


@pytest.mark.parametrize("learner", ["native", "torch"])
def test_optimizer_and_scheduler_are_the_ones_passed_in(make_agent, learner):
    """A scheduler that falls to 0 over the updates of the run gives the configuration's own line."""
    agent = make_agent(adam, falling, learner_backend=learner)
    optimizer, scheduler = agent.learner.optimizer, make_agent.scheduler
    plain = make_agent(learner_backend=learner)
    assert agent.learner.name == plain.learner.name == learner
    for iteration in range(4):
        for one in (agent, plain):
            logged = one.train(32)
            expected = learning_rate(agent.config, (iteration + 1) * UPDATES_PER_ROLLOUT - 1)
            assert logged["learning_rate"] == pytest.approx(expected, rel=1e-9)
        assert scheduler.last_epoch == (iteration + 1) * UPDATES_PER_ROLLOUT
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)
    for mine, other in zip(agent.policy.parameters(), plain.policy.parameters(), strict=True):
        # the rates differ in the 15th place, so a weight may differ in float32's last after each of 32 updates
        torch.testing.assert_close(mine, other, rtol=0, atol=32 * 6e-8)
    state = optimizer.state[agent.policy.actor.logstd]
    assert int(state["step"]) == 32 and torch.equal(
        state["exp_avg"], agent.learner.state_dict()["optimizer"]["state"][2]["exp_avg"]
    )


def test_get_total_iters_is_the_number_of_updates(make_agent, small):
    args = arguments(small())
    assert get_total_iters("PPO_Clip", args) == 512 // 128 * UPDATES_PER_ROLLOUT
    agent = make_agent(adam, falling)
    agent.train(512 // 4)
    assert make_agent.scheduler.last_epoch == get_total_iters(args.agent, args)


@pytest.mark.parametrize("learner", ["native", "torch"])
def test_any_scheduler_of_torch(make_agent, learner):
    rates = torch.optim.lr_scheduler

    def chained(optimizer):
        first = rates.ConstantLR(optimizer, 0.5, total_iters=3)
        return rates.SequentialLR(optimizer, [first, rates.CosineAnnealingLR(optimizer, 20)], milestones=[5])

    for make in (
        chained,
        lambda optimizer: rates.StepLR(optimizer, 3, gamma=0.5),
        lambda optimizer: rates.LambdaLR(optimizer, lambda k: 1 / (1 + k)),
        lambda optimizer: rates.OneCycleLR(optimizer, 1e-3, total_steps=64, cycle_momentum=False),
    ):
        agent = make_agent(adam, make, learner_backend=learner)
        agent.train(32)
        twin = adam([torch.nn.Parameter(torch.zeros(1))])
        scheduler = make(twin)
        for _ in range(UPDATES_PER_ROLLOUT):
            twin.step()
            scheduler.step()
        assert agent.learner.optimizer.param_groups[0]["lr"] == pytest.approx(twin.param_groups[0]["lr"], rel=1e-12)
        agent.save_model("model.pth")
        assert load_checkpoint(Path(agent.model_dir_save) / "model.pth")["learner"]["scheduler"]


def test_an_optimizer_alone_keeps_its_rate(make_agent):
    agent = make_agent(lambda parameters: torch.optim.Adam(parameters, 1e-3))
    for _ in range(3):
        assert agent.train(32)["learning_rate"] == 1e-3
    assert agent.learner.name == "native" and agent.learner.optimizer.param_groups[0]["eps"] == 1e-8


@pytest.mark.parametrize(
    ("make", "scheduler", "reason"),
    [
        (lambda p: torch.optim.SGD(p, 0.1), None, "the optimizer is SGD"),
        (lambda p: torch.optim.AdamW(p, 1e-3), None, "the optimizer is AdamW"),
        (lambda p: torch.optim.Adam(p, 1e-3, weight_decay=0.1), None, "weight_decay is 0.1"),
        (lambda p: torch.optim.Adam(p, 1e-3, amsgrad=True), None, "amsgrad is True"),
        (lambda p: torch.optim.Adam([{"params": [q]} for q in p], 1e-3), None, "several parameter groups"),
        (lambda p: torch.optim.Adam(list(p)[:2], 1e-3), None, "does not have all of the policy's parameters"),
        (adam, lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1e-3, total_steps=64), "cycle_momentum=False"),
    ],
)
def test_what_is_not_plain_adam_is_served_by_torch(make_agent, make, scheduler, reason):
    agent = make_agent(make, scheduler)
    row = agent._trainer.components.learner_reason
    assert agent.learner.name == "torch" and reason in row
    assert "the script's optimizer decides learning rates and betas" in row
    before = [p.detach().clone() for p in agent.policy.parameters()]
    agent.train(32)
    given = {id(p) for group in agent.learner.optimizer.param_groups for p in group["params"]}
    for parameter, old in zip(agent.policy.parameters(), before, strict=True):
        assert torch.equal(parameter, old) == (id(parameter) not in given)
    if isinstance(agent.learner.optimizer, torch.optim.SGD):
        with pytest.raises(ConfigError, match="the native learner cannot be used: the optimizer is SGD"):
            make_agent(make, scheduler, learner_backend="native")


@pytest.mark.parametrize("learner", ["native", "torch"])
def test_a_failed_update_leaves_optimizer_and_scheduler_where_they_were(make_agent, learner):
    agent = make_agent(adam, falling, learner_backend=learner)
    agent.train(32)
    scheduler = make_agent.scheduler
    rate, position = agent.learner.optimizer.param_groups[0]["lr"], scheduler.last_epoch
    weights = {k: v.clone() for k, v in agent.policy.state_dict().items()}
    trainer = agent._trainer
    trainer.components.collector.collect(trainer.components.rollout)
    trainer.components.rollout.obs[3, 1] = np.nan
    with pytest.raises(NonFiniteError):
        agent.learner.update(trainer.components.rollout, 1)
    assert agent.learner.optimizer.param_groups[0]["lr"] == rate
    assert scheduler.last_epoch == position and scheduler.get_last_lr() == [rate]
    assert same(agent.policy.state_dict(), weights)


def test_wrong_parts_are_one_sentence(make_agent, small):
    args = arguments(small(policy="Gaussian_AC"))
    envs = make_envs(args)
    policy = by_hand(args, envs)
    other = adam(by_hand(args, envs).parameters())

    def refused(error, message, **parts):
        with pytest.raises(error, match=message):
            PPO_Agent(args, envs, quiet=True, **parts)

    refused(TypeError, "policy must come from Gaussian_AC_Policy", policy=torch.nn.Linear(1, 1))
    refused(TypeError, "callback is not supported", callback=object())
    refused(
        ValueError,
        "belongs to another one",
        policy=policy,
        optimizer=adam(policy.parameters()),
        scheduler=falling(other),
    )
    mine = adam(policy.parameters())
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(mine)
    refused(ValueError, "ReduceLROnPlateau", policy=policy, optimizer=mine, scheduler=plateau)
    refused(ValueError, "parameters are not the policy's", policy=policy, optimizer=other)
    wide = Gaussian_AC_Policy(
        envs.action_space, Basic_MLP((7,), [8], activation=torch.nn.ReLU), activation=torch.nn.ReLU
    )
    refused(ValueError, "policy takes observations of 7 values; the environment has 4", policy=wide)
    assert not Path(args.log_dir).exists()
    envs.close()
    discrete = arguments(small(policy="Gaussian_AC"), env_id="CartPole-v1", env_name="Classic Control")
    envs = make_envs(discrete)
    for parts in ({}, {"policy": policy}):  # the YAML's, or one by hand
        with pytest.raises(ConfigError, match=r"does not fit the Discrete actions of CartPole-v1.*Categorical_AC"):
            PPO_Agent(discrete, envs, quiet=True, **parts)
    nobody_chose = arguments(small(), env_id="CartPole-v1", env_name="Classic Control")
    with pytest.raises(ConfigError, match=r"does not fit the Discrete actions of CartPole-v1.*Categorical_AC"):
        PPO_Agent(nobody_chose, envs, quiet=True, policy=policy)
    envs.close()
    with pytest.raises(TypeError, match="observation_space and action_space must be given"):
        PPO_Agent(args, quiet=True)
    with pytest.raises(TypeError, match="envs must come from make_envs"):
        PPO_Agent(args, object(), quiet=True)


def test_envs_used_elsewhere_start_anew(make_agent):
    """Episodes that others have moved must not be taken for the agent's own."""
    agent = make_agent()
    agent.train(20)
    agent.train_envs.reset()
    agent.train(20)
    assert agent.memory.step == 20 and agent.current_step == 80
    assert (agent.memory.episodes["length"] <= agent.memory.episodes["step"] + 1).all()
    agent.test(test_episodes=4, test_envs=agent.train_envs, close_envs=False)
    agent.train(32)
    assert agent.current_step == 128 and agent.memory.step == 0


def test_test_plays_the_same_number_in_each_env_and_changes_nothing(make_agent, small):
    agent = make_agent()
    agent.train(32)
    before = agent.obs_rms.state_dict()
    weights = {k: v.clone() for k, v in agent.policy.state_dict().items()}
    args = arguments(small(), parallels=3)
    assert len(agent.test(lambda: make_envs(args), 5)) == 5
    assert all(np.array_equal(before[k], v) for k, v in agent.obs_rms.state_dict().items())
    assert same(agent.policy.state_dict(), weights)
    with pytest.raises(TypeError, match="either env_fn or test_envs"):
        agent.test()


def test_get_actions_takes_what_the_env_gives_and_gives_what_it_takes(make_agent):
    agent = make_agent()
    agent.train(32)
    agent.policy.actor.logstd.data.fill_(3.0)  # so that samples leave the bounds of +-3
    obs = np.random.default_rng(0).normal(size=(500, 4))
    out = agent.action(obs, return_dists=True, return_logpi=True)
    assert out["actions"].shape == (500, 1) and np.abs(out["actions"]).max() == 3.0
    assert out["values"].shape == out["log_pi"].shape == (500,)
    sure = agent.get_actions(obs, deterministic=True, return_logpi=True)
    assert sure["dists"] is None
    # the most likely action's log-density is that of the distribution at its mean
    np.testing.assert_allclose(sure["log_pi"], out["dists"].log_prob(out["dists"].mean), rtol=1e-6)
    normalized = torch.from_numpy(agent._trainer.components.obs_normalizer.normalize(obs))
    np.testing.assert_allclose(out["values"], agent.policy.value(normalized).detach().numpy(), rtol=1e-6)


def test_models_are_found_by_kind_seed_and_path(make_agent, small, capsys):
    trained = make_agent(seed=5)
    trained.train(32)
    trained.save_model("final_train_model.pth")
    final = trained.policy.actor.logstd.detach().clone()
    agent = make_agent(seed=5)  # with a run folder of its own, newer and without a model
    agent.load_model(agent.model_dir_load)
    assert torch.equal(agent.policy.actor.logstd, final)
    assert same(agent.policy.state_dict(), trained.policy.state_dict()) and agent.current_step == 0
    assert agent.obs_rms.count == trained.obs_rms.count and agent.ret_rms.count == trained.ret_rms.count

    trained.train(32)
    trained.save_model("best_model.pth")
    agent.load_model(agent.model_dir_load)  # the best one goes before the final one
    assert same(agent.policy.state_dict(), trained.policy.state_dict())
    agent.load_model(agent.model_dir_load, "final_train_model.pth")
    assert torch.equal(agent.policy.actor.logstd, final)
    agent.load_model(Path(trained.model_dir_save) / "best_model.pth")
    assert same(agent.policy.state_dict(), trained.policy.state_dict())

    other = make_agent(seed=6)
    with pytest.raises(CheckpointError, match=r"no model file of seed 6 in it; seeds with one there: 5$"):
        other.load_model(other.model_dir_load)
    other.load_model(other.model_dir_load, 5)  # as on the page: the seed where a name would be
    assert same(other.policy.state_dict(), trained.policy.state_dict())
    with pytest.raises(CheckpointError, match=r"no such model file or folder"):
        other.load_model("nowhere")
    with pytest.raises(CheckpointError, match=r"no other.pth of seed 5"):
        agent.load_model(agent.model_dir_load, "other.pth")


def test_the_latest_checkpoint_serves_where_nothing_else_was_saved(make_agent):
    trained = make_agent(checkpoint_interval=128)
    trained.train(70)
    assert [path.name for path in periodic_checkpoints(Path(trained.model_dir_save))] == [
        "checkpoint_128.pth",
        "checkpoint_256.pth",
    ]
    agent = make_agent()
    agent.load_model(agent.model_dir_load)
    assert same(agent.policy.state_dict(), trained.policy.state_dict())


def test_a_model_that_was_trained_otherwise_is_refused(make_agent, small):
    summary = run(small(seed=8), mode="train", quiet=True)  # with the configuration's tanh on the mean
    agent = make_agent(seed=8)
    with pytest.raises(CheckpointError, match=r"trained with activation_action tanh; expected None"):
        agent.load_model(summary.model_dir)


def test_the_command_line_resumes_and_tests_an_agents_run(make_agent, small):
    """The stored configuration describes the policy that was made by hand, not what the YAML says of it."""
    agent = make_agent(checkpoint_interval=128)
    agent.train(64)
    whole = make_agent(checkpoint_interval=128)
    whole.train(128)
    assert agent.config.activation_action is None
    resumed = run(agent.config, resume=Path(agent.log_dir), quiet=True)
    assert resumed.steps == 512
    saved = load_checkpoint(Path(resumed.model_dir) / "final_train_model.pth")["policy"]
    assert same(saved, whole.policy.state_dict())
    tested = run(small(), mode="test", resume=Path(resumed.model_dir), quiet=True)
    scores = whole.test(lambda: make_envs(arguments(small(), parallels=2)), 2)
    assert tested.final_mean is not None and len(scores) == 2


def test_a_run_with_a_scheduler_of_its_own_is_resumed_by_nobody_else(make_agent):
    agent = make_agent(adam, falling, checkpoint_interval=128)
    agent.train(32)
    with pytest.raises(CheckpointError, match="resume from a script that passes the same scheduler"):
        run(agent.config, resume=Path(agent.log_dir), quiet=True)


@pytest.mark.parametrize("learner", ["native", "torch"])
def test_a_scheduler_does_not_begin_anew_in_a_resumed_run(small, learner):
    config = small(learner_backend=learner)

    def resumed(log_dir):
        env = make_env_fn(config.env_id)()
        policy = build_policy(config, env.observation_space, env.action_space)
        env.close()
        optimizer = adam(policy.parameters())
        given = {"policy": policy, "optimizer": optimizer, "scheduler": falling(optimizer)}
        return Trainer(config, "train", log_dir, True, **given), given["scheduler"]

    half = run(replace(config, running_steps=256), "train", quiet=True)
    with pytest.raises(CheckpointError, match="it was saved without a scheduler"):
        resumed(Path(half.log_dir))
    path = periodic_checkpoints(Path(half.model_dir))[-1]
    saved = load_checkpoint(path)
    scheduler = falling(adam([torch.nn.Parameter(torch.zeros(1))]))
    saved["learner"]["scheduler"] = {**scheduler.state_dict(), "last_epoch": 16}
    save_checkpoint(path, saved)
    trainer, scheduler = resumed(path)
    train_to_the_end(trainer)
    trainer.close()
    assert scheduler.last_epoch == 512 // 128 * UPDATES_PER_ROLLOUT


def test_a_loaded_model_leaves_the_scheduler_where_it_was(make_agent):
    other = make_agent()
    other.train(32)
    other.save_model("model.pth")
    agent = make_agent(adam, falling)
    agent.train(32)
    agent.load_model(other.model_dir_save, "model.pth")
    assert make_agent.scheduler.last_epoch == UPDATES_PER_ROLLOUT
    agent.train(32)
    assert make_agent.scheduler.last_epoch == 2 * UPDATES_PER_ROLLOUT


def test_an_agent_without_envs_tests_and_does_not_train(make_agent, small):
    trained = make_agent()
    trained.train(32)
    trained.save_model("best_model.pth")
    scores = make_agent()
    scores.load_model(trained.model_dir_save)
    args = arguments(small(), activation_action=None)
    envs = make_envs(args)
    agent = PPO_Agent(args, observation_space=envs.observation_space, action_space=envs.action_space, quiet=True)
    agent.load_model(trained.model_dir_save)
    expected = scores.test(lambda: make_envs(args), 4)
    assert agent.test(test_episodes=4, test_envs=envs) == expected
    with pytest.raises(RuntimeError, match="made without envs"):
        agent.train(1)
    agent.finish()


def test_a_test_leaves_no_folder_of_models(make_agent):
    agent = make_agent()
    folder = Path(agent.model_dir_save)
    assert folder.is_dir()
    agent.finish()
    assert not folder.exists()


def test_what_cannot_be_run_leaves_no_folder_at_all(make_agent, tmp_path):
    with pytest.raises(ConfigError, match="the native learner cannot be used"):
        make_agent(lambda p: torch.optim.SGD(p, 0.1), learner_backend="native")
    assert not (tmp_path / "logs").exists() and not (tmp_path / "models").exists()


def test_kl_agent_is_the_configurations_kl(small):
    """The class decides, whatever the configuration's agent is; it may be one of PPO's."""
    args = arguments(small(), kl_coef=3.0)
    envs = make_envs(args)
    agent = PPOKL_Agent(args, envs, quiet=True)
    assert (agent.config.agent, agent.config.learner) == ("PPO_KL", "PPOKL_Learner")
    assert agent.train(32)["losses/kl_coef"] == 3.0
    agent.finish()
    envs.close()


def test_runner_with_an_agent_from_outside(make_agent, small):
    agent = make_agent()
    args = arguments(small())
    runner = RunnerDRL(args, envs=agent.train_envs, agent=agent)
    runner.run("benchmark", running_steps=300, eval_interval=150, test_episodes=2)
    assert agent.current_step == 300
    assert {"best_model.pth", "final_train_model.pth"} <= {p.name for p in Path(agent.model_dir_save).iterdir()}
    runner.run("train", running_steps=40)
    assert agent.current_step == 340
    scores = runner.run("test", model_name="final_train_model.pth", test_episodes=3, n_envs=2)
    assert len(scores) == 3
    with pytest.raises(ValueError, match="mode must be one of train, test, benchmark; got 'play'"):
        runner.run("play")
    agent.train(1)  # the runner left it open


def test_signatures_are_those_of_xuance():
    """Names and order of XuanCe 1.4.4's arguments, and of the page's."""

    def names(function):
        return [name for name in inspect.signature(function).parameters if name not in ("self", "kwargs")]

    shape = ["normalize", "initialize", "activation"]
    heads = ["action_space", "representation", "actor_hidden_size", "critic_hidden_size", *shape]
    assert names(Basic_MLP)[:6] == ["input_shape", "hidden_sizes", *shape, "device"]
    assert names(Gaussian_AC_Policy)[:10] == [*heads, "activation_action", "device", "use_distributed_training"]
    assert names(PPOCLIP_Agent)[:6] == ["config", "envs", "policy", "optimizer", "scheduler", "device"]
    assert {"observation_space", "action_space", "callback"} <= set(names(PPO_Agent))
    assert names(PPO_Agent.save_model) == ["model_name", "model_path"]
    assert names(PPO_Agent.load_model) == ["path", "model"]
    assert names(PPO_Agent.get_actions)[:4] == ["observations", "deterministic", "return_dists", "return_logpi"]
    assert names(PPO_Agent.train) == ["train_steps"]
    assert names(RunnerDRL) == ["config", "envs", "agent", "manage_resources"]


def test_envs_closed_before_the_end_are_no_error(make_agent):
    """As on the page: envs.close(), then agent.finish(), which still saves the last weights."""
    agent = make_agent(checkpoint_interval=10**6)
    agent.train(32)
    agent.train_envs.close()
    summary = agent.finish()
    saved = load_checkpoint(Path(agent.model_dir_save) / "checkpoint_128.pth")
    assert summary.steps == 128 and same(saved["policy"], agent.policy.state_dict())
    assert saved["collector"]["envs"] is None


def test_loading_in_the_middle_drops_what_other_weights_collected(make_agent):
    keys = {"env_id": "Pendulum-v1", "env_name": "Classic Control"}  # whose state cannot be saved
    agent = make_agent(**keys)
    agent.train(32)
    agent.save_model("best_model.pth")
    weights = {k: v.clone() for k, v in agent.policy.state_dict().items()}
    agent.train(44)
    assert agent.memory.step == 12 and not same(agent.policy.state_dict(), weights)
    agent.load_model(agent.model_dir_save)
    assert agent.current_step == 256 and agent.memory.step == 0 and same(agent.policy.state_dict(), weights)
    assert (agent.memory.episode_lengths == 0).all()
    agent.train(32)
    assert agent.current_step == 384


def test_masks_of_allowed_actions(small):
    """An agent trains and tests where a forbidden action raises, and obeys the masks that it is given."""
    config = small(env_id="toys:toy/Masked-v0", policy="Categorical_AC", use_actions_mask=True)
    args = arguments(config)
    envs = make_envs(args)
    agent = PPO_Agent(args, envs, quiet=True)
    agent.train(40)
    assert len(agent.test(lambda: make_envs(args), 4)) == 4
    obs = np.random.default_rng(0).normal(size=(300, 3))
    masks = np.eye(5, dtype=bool)[np.arange(300) % 5] | np.eye(5, dtype=bool)[2]
    for sure in (True, False):
        out = agent.get_actions(obs, deterministic=sure, return_dists=True, return_logpi=True, action_masks=masks)
        assert masks[np.arange(300), out["actions"]].all()
        np.testing.assert_allclose(np.exp(out["log_pi"]), out["dists"].probs[range(300), out["actions"]], rtol=1e-5)
        assert (out["dists"].probs.numpy()[~masks] == 0.0).all()
    agent.finish()
    envs.close()


def test_masks_for_a_gaussian_policy_are_refused(make_agent):
    with pytest.raises(ValueError, match="for a Categorical policy"):
        make_agent().get_actions(np.zeros((1, 4)), action_masks=np.ones((1, 1), bool))
