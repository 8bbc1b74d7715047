"""Half cheetahs: one that uses the whole language of compiled tasks, and some with one fault each."""

import math

import cheetah_tasks
import numpy as np

from xcfast.tasks import MujocoTask

TABLE = {"a": 1}
OFFSETS = np.array([0.5, -0.25])
LIMITS = (0.1, 0.5)
VERY_LARGE = math.inf


class Plain(MujocoTask):
    """A half cheetah without a reward."""

    xml = "half_cheetah.xml"
    frame_skip = 5
    memory = {"x": 0.0, "v": np.zeros(3)}
    terms = ("first", "second")

    def step(self, data, action, memory, terms):
        return 0.0, False

    def observe(self, data, memory):
        return data.qpos.copy()


def factorial(n):
    return 1.0 if n < 2 else n * factorial(n - 1)


def weighed(x, weight=2.0):
    """A function of the module, with a default."""
    return weight * x + OFFSETS[0]


class Language(Plain):
    """Uses what compiled code has, the less usual first."""

    weights = np.array([[1.0, 2.0, 3.0], [0.5, -1.0, 0.25]])
    bounds = (-0.7, 0.7)
    names = [2, 4]
    bound = None

    def build(self):
        self.gain = 3.0
        self.stiffness = self.model.opt.timestep

    @staticmethod
    def scaled(x):
        return 0.5 * x

    def helper(self, data, k):
        return self.gain * data.qvel[k]

    def before_step(self, data, action, memory):
        memory.v = data.qpos[:3] * self.gain
        memory.v += 1.0
        memory.v[0] -= 2.0
        memory.x = memory.v.sum()

    def step(self, data, action, memory, terms):
        low, high = self.bounds
        a, b, c = data.qpos[:3]
        total = 0.0
        for k in range(data.ncon):
            contact = data.contact[k]
            total += contact.dist + data.contact.geom2[k] + contact.frame[2] * contact.pos[0]
        product = self.weights @ data.qvel[:3]
        terms.first = np.mean(data.qvel) + np.dot(product, OFFSETS) + math.sqrt(np.sum(np.square(data.qpos)))
        terms.second = self.helper(data, 4) + self.scaled(total) + weighed(a) + weighed(b, weight=c) + data.time
        if self.bound is None and min(high, VERY_LARGE) > low:
            terms.second += LIMITS[1] * self.stiffness + self.names[1] * self.model.nq
        terms.second += data.body("torso").xpos[2] + data.joint("bthigh").qvel[0]
        fell = bool(np.any(np.abs(data.qpos[2:]) > 0.7))
        return terms.first + 1e-3 * terms.second + memory.x, fell


def doubled(x):
    return 2.0 * x


class Idioms(Language):
    """What people write besides: lists as indices, comprehensions, super(), functions of modules, annotations."""

    feet = [4, 2]
    table = {"gain": 1.5}
    lambda_ = 0.95

    def step(self, data, action, memory, terms):
        reward, fell = super().step(data, action, memory, terms)
        height: float = data.xpos[self.feet][1, 2]
        values = np.array([math.sin(q) for q in data.qpos[:3]])
        memory.v, memory.x = data.qpos[:3], reward
        stacked = np.concatenate([values, np.clip(data.qvel[:2], -1.0, 1.0), data.act])
        reward += self.table["gain"] * self.lambda_ * height + cheetah_tasks.doubled(np.clip(values[0], -0.5, 0.5))
        return reward + np.sum(stacked) + self.weights.max() + Plain.step(self, data, action, memory, terms)[0], fell


class ReadsContactsBefore(Plain):
    memory = {"contacts": 0.0, "depth": 0.0}

    def before_step(self, data, action, memory):
        memory.contacts = data.ncon
        memory.depth = 0.0
        for k in range(data.ncon):
            memory.depth += data.contact[k].dist

    def step(self, data, action, memory, terms):
        return memory.contacts + memory.depth, False


class UnpacksTooMany(Plain):
    def step(self, data, action, memory, terms):
        a, b, c = data.qpos[:2] if data.time > 0.2 else data.qpos[:3]
        return a + b + c, False


def only_by_name(x, *, weight):
    return weight * x


class KeywordOnly(Plain):
    def step(self, data, action, memory, terms):
        return only_by_name(1.0, weight=2.0), False


class WritesConstant(Plain):
    def build(self):
        self.count = np.zeros(1)

    def step(self, data, action, memory, terms):
        self.count[0] += 1.0
        return self.count[0], False


class KeepsGoalInSelf(Plain):
    goal = 0.0

    def reset(self, rng, qpos, qvel, memory):
        self.goal = rng.uniform()


class ChangesModel(Plain):
    def reset(self, rng, qpos, qvel, memory):
        self.model.body_mass[1] = rng.uniform(1.0, 2.0)


class LivesOnViews(Plain):
    def observe(self, data, memory):
        return data.qpos


class ObservesNaN(Plain):
    def observe(self, data, memory):
        return data.qpos * (1.0 if data.time < 0.2 else math.nan)


class FailsAtOnce(Plain):
    far = 10_000_000

    def step(self, data, action, memory, terms):
        return data.qpos[self.far], False


class NoSuchField(Plain):
    def step(self, data, action, memory, terms):
        return data.qpoz[0], False


class NoSuchMemory(Plain):
    def step(self, data, action, memory, terms):
        return memory.y, False


class NoSuchTerm(Plain):
    def step(self, data, action, memory, terms):
        terms.third = 1.0
        return 0.0, False


class NoSuchBody(Plain):
    def step(self, data, action, memory, terms):
        return data.body("trunk").xpos[0], False


class NoSuchConstant(Plain):
    def step(self, data, action, memory, terms):
        return self.weight, False


class NoSuchFunction(Plain):
    def step(self, data, action, memory, terms):
        return np.summ(action), False


class WritesDict(Plain):
    def step(self, data, action, memory, terms):
        d = {"a": 1.0}
        return d["a"], False


class ReadsDict(Plain):
    def step(self, data, action, memory, terms):
        return TABLE["a"], False


class Prints(Plain):
    def step(self, data, action, memory, terms):
        print("step")
        return 0.0, False


class Draws(Plain):
    def step(self, data, action, memory, terms):
        return np.random.rand(), False


class SetsSelf(Plain):
    def step(self, data, action, memory, terms):
        self.count = 3
        return 0.0, False


class CallsItself(Plain):
    def step(self, data, action, memory, terms):
        return factorial(3), False


class MixesTypes(Plain):
    def step(self, data, action, memory, terms):
        x = 0.0
        if data.qpos[0] > 0:
            x = np.zeros(3)
        return np.sum(x), False


class ListOfNumbers(Plain):
    def observe(self, data, memory):
        return np.concatenate((data.qpos, [1.0]))


class NotANumber(Plain):
    def step(self, data, action, memory, terms):
        terms.second = math.nan
        return terms.second, False


class Raises(Plain):
    def step(self, data, action, memory, terms):
        if data.time > 0.2:
            raise ValueError("too late")
        return 0.0, False


class OutOfRange(Plain):
    def step(self, data, action, memory, terms):
        k = 77 if data.time > 0.2 else 0
        return data.qpos[k], False


class AnotherSize(Plain):
    def observe(self, data, memory):
        return data.qpos[: 9 if data.time < 0.2 else 8].copy()
