"""What a user reads when a task has a fault."""

import re
import subprocess
import sys
from pathlib import Path

import cheetah_tasks
import numpy as np
import pytest
from gymnasium.spaces import Box

from xcfast.envs import DummyVecEnv, MujocoVecEnv, make_env_fn
from xcfast.errors import EnvError, NonFiniteError, NotNativeError, SimulationError, TaskError
from xcfast.tasks import GymnasiumTask, MujocoTask, register
from xcfast.tasks.env import TaskEnv

FILE = re.escape(cheetah_tasks.__file__)


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XCFAST_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        yield


@pytest.mark.parametrize(
    "name, statement, why",
    [
        ("NoSuchField", "return data.qpoz[0], False", "data has no qpoz; did you mean qpos?"),
        ("NoSuchMemory", "return memory.y, False", "memory has no y; the task declares x, v"),
        ("NoSuchTerm", "terms.third = 1.0", "terms has no third; the task declares first, second"),
        ("NoSuchBody", 'return data.body("trunk").xpos[0], False', "Invalid name 'trunk'"),
        ("NoSuchConstant", "return self.weight, False", "self has no weight after build"),
        ("NoSuchFunction", "return np.summ(action), False", "numpy has no summ"),
        ("WritesDict", 'd = {"a": 1.0}', "a dict cannot be compiled"),
        ("ReadsDict", 'return TABLE["a"], False', "TABLE is an object of dict"),
        ("Prints", 'print("step")', "print cannot be compiled"),
        ("Draws", "return np.random.rand(), False", "random numbers are drawn in reset"),
        ("SetsSelf", "self.count = 3", "self is constant after build"),
        ("CallsItself", "", "factorial calls itself"),
        ("KeywordOnly", "def only_by_name(x, *, weight):", "parameters after * and ** cannot be compiled"),
        ("WritesConstant", "self.count[0] += 1.0", "self is constant after build; memory keeps what changes"),
        ("ChangesModel", "self.model.body_mass[1] = rng.uniform(1.0, 2.0)", "native environments share the model"),
        ("MixesTypes", "return np.sum(x), False", "Cannot unify"),
        ("ListOfNumbers", "return np.concatenate((data.qpos, [1.0]))", "write np.array([...]) instead of a list"),
    ],
)
def test_a_statement_that_cannot_be_compiled(name, statement, why):
    with pytest.raises(NotNativeError) as caught:
        MujocoVecEnv(getattr(cheetah_tasks, name), 1, 1, check=False)
    assert re.match(rf"{FILE}:\d+: ", str(caught.value)), caught.value
    assert statement in str(caught.value)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_reward_that_is_not_finite_names_the_term():
    said = r"step returned the reward nan; of its terms, second is nan"
    native = MujocoVecEnv(cheetah_tasks.NotANumber, 2, 1, check=False)
    native.reset(seed=0)
    with pytest.raises(SimulationError, match=f"environment 0: {said}"):
        native.step(np.zeros((2, 6), np.float32))
    env = make_env_fn(cheetah_tasks.NotANumber)()
    env.reset(seed=0)
    with pytest.raises(NonFiniteError, match=f"NotANumber.{said}"):
        env.step(np.zeros(6, np.float32))


def steps_until_it_fails(kind):
    native = MujocoVecEnv(kind, 2, 1, check=False)
    native.reset(seed=0)
    with pytest.raises(SimulationError) as caught:
        for _ in range(20):
            native.step(np.zeros((2, 6), np.float32))
    return str(caught.value)


def test_an_exception_in_a_step_has_its_place():
    said = steps_until_it_fails(cheetah_tasks.Raises)
    assert re.search(rf'{FILE}:\d+: raise ValueError\("too late"\): ValueError: too late', said), said


def test_unpacking_counts_the_values():
    said = steps_until_it_fails(cheetah_tasks.UnpacksTooMany)
    assert re.search(rf"{FILE}:\d+: a, b, c = .*: ValueError: not enough values to unpack", said), said


def test_an_observation_that_is_not_finite():
    assert steps_until_it_fails(cheetah_tasks.ObservesNaN).endswith("observe returned nan as number 0")
    env = make_env_fn(cheetah_tasks.ObservesNaN)()
    env.reset(seed=0)
    with pytest.raises(NonFiniteError, match="ObservesNaN.observe returned nan as number 0"):
        for _ in range(20):
            env.step(np.zeros(6, np.float32))


def test_the_start_runs_python_first():
    """An index far out of range is a sentence with its place, before compiled code is called."""
    with pytest.raises(
        TaskError, match=rf"{FILE}:\d+: return data.qpos\[self.far\], False: IndexError: index 10000000"
    ):
        MujocoVecEnv(cheetah_tasks.FailsAtOnce, 1, 1)


def test_self_is_constant_after_build():
    for make in (
        lambda: MujocoVecEnv(cheetah_tasks.KeepsGoalInSelf, 1, 1),
        lambda: make_env_fn(cheetah_tasks.KeepsGoalInSelf)().reset(seed=0),
    ):
        with pytest.raises(TaskError, match="KeepsGoalInSelf.goal is constant after build; memory keeps what changes"):
            make()


def test_an_index_out_of_range_has_its_place():
    said = steps_until_it_fails(cheetah_tasks.OutOfRange)
    assert re.search(rf"{FILE}:\d+: return data.qpos\[k\], False: IndexError: index 77 is out of bounds", said), said


def test_an_observation_of_another_size():
    assert "observe returned another number of values" in steps_until_it_fails(cheetah_tasks.AnotherSize)
    envs = DummyVecEnv([make_env_fn(cheetah_tasks.AnotherSize)])
    envs.reset(seed=0)
    with pytest.raises(TaskError, match=r"observe must always return as many numbers, \(9,\); got \(8,\)"):
        for _ in range(20):
            envs.step(np.zeros((1, 6), np.float32))


def task_with(base=cheetah_tasks.Plain, **members):
    return type("Made", (base,), members)


@pytest.mark.parametrize(
    "members, why",
    [
        ({"xml": ""}, "Made must set xml, or define make_model"),
        ({"xml": "no_such.xml"}, "there is no model no_such.xml; looked for"),
        ({"xml": "hopper_v5.xml"}, r"there is no model hopper_v5.xml; looked for .*; did you mean hopper.xml\?"),
        ({"xml": "<mujoco><worldbody><geom/></worldbody></mujoco>"}, "the model cannot be loaded"),
        ({"frame_skip": 0}, "Made.frame_skip must be a whole number of at least 1; got 0"),
        ({"keyframe": "home"}, r"Made.keyframe must be one of the model's \[\]; got 'home'"),
        ({"memory": {"x": "text"}}, "memory.x must start as a number or an array of numbers; got 'text'"),
        ({"terms": ("first", "first")}, "Made.terms must be different names"),
        ({"terms": "first"}, "Made.terms must be a tuple of names; got 'first'"),
        ({"terms": ("mean",)}, "a field of terms must have another name than mean"),
        ({"memory": {"size": 0.0}}, "a field of memory must have another name than size"),
        ({"width": 0.5}, "Made must not have an attribute width: it is an argument of the environment"),
        ({"observe": None}, "Made must define observe"),
        ({"step": lambda self, data, action: 0}, r"Made must define step\(self, data, action, memory, terms\)"),
        (
            {"observe": lambda self, data, memory: data.qpos[0]},
            "must return a float64 array of one dimension; got float",
        ),
        ({"build": lambda self: setattr(self, "action_space", Box(-1, 1, (3,), np.float32))}, "must define control"),
    ],
)
def test_a_task_that_contradicts_itself(members, why):
    with pytest.raises(EnvError, match=why):
        make_env_fn(task_with(**members))()


def test_a_parameter_that_the_class_does_not_have():
    with pytest.raises(EnvError, match=r"unexpected keyword argument 'frame_skp'; did you mean frame_skip\?"):
        make_env_fn(cheetah_tasks.Plain, frame_skp=2)()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frame_skip", 2),
        ("xml", "ant.xml"),
        ("keyframe", "home"),
        ("reset", cheetah_tasks.KeepsGoalInSelf.reset),
        ("control", lambda self, data, action, memory: None),
    ],
)
def test_what_the_task_of_gymnasium_has_itself(name, value):
    kind = task_with(GymnasiumTask, env_id="HalfCheetah-v5", step=cheetah_tasks.Plain.step, **{name: value})
    with pytest.raises(EnvError, match=f"Made must not define {name}: HalfCheetah-v5 has its own"):
        make_env_fn(kind)()


def test_only_tasks_are_registered():
    with pytest.raises(TaskError, match="must be a class derived from MujocoTask or GymnasiumTask; got"):
        register("Number-v0")(int)
    with pytest.raises(TaskError, match="env_id must be one of Gymnasium's MuJoCo tasks; got 'CartPole-v1'"):
        TaskEnv(
            task_with(GymnasiumTask, env_id="CartPole-v1", step=lambda self, data, action, memory, terms: (0, False))
        )
    assert issubclass(cheetah_tasks.Plain, MujocoTask)


def test_a_task_that_cannot_be_compiled_is_stepped_in_workers_and_says_why(tmp_path):
    (tmp_path / "printing.py").write_text(
        "import numpy as np\n"
        "from xcfast.tasks import MujocoTask, register\n"
        "@register('Printing-v0', 20)\n"
        "class Printing(MujocoTask):\n"
        "    xml = 'inverted_pendulum.xml'\n"
        "    def step(self, data, action, memory, terms):\n"
        "        text = f'{data.time}'\n"
        "        return float(len(text) > 0), False\n"
        "    def observe(self, data, memory):\n"
        "        return np.concatenate((data.qpos, data.qvel))\n"
    )
    keys = "parallels=2 horizon_size=8 running_steps=32 n_minibatch=2 n_epochs=1 test_episode=1"
    command = [sys.executable, "-m", "xcfast.train", "--env-id", "printing:Printing-v0", *keys.split()]
    command += [f"log_dir={tmp_path}/l", f"model_dir={tmp_path}/m"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "is stepped by SubprocVecEnv" in line]
    place = f"{Path(tmp_path, 'printing.py')}:7: text = f'{{data.time}}': an f-string cannot be compiled"
    assert len(set(lines)) == 1
    assert lines[0].endswith(place)
