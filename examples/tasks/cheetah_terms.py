"""Gymnasium's half cheetah with another reward, made of the terms of its own."""

from xcfast.tasks import GymnasiumTask, register


@register("CheetahAtSpeed-v0", max_episode_steps=1000)
class CheetahAtSpeed(GymnasiumTask):
    env_id = "HalfCheetah-v5"
    terms = ("at_speed",)
    wanted_speed = 3.0

    def step(self, data, action, memory, terms):
        terms.at_speed = -abs(terms.x_velocity - self.wanted_speed)
        return terms.at_speed - terms.control, False


@register("SameCheetah-v0", max_episode_steps=1000)
class SameCheetah(GymnasiumTask):
    """The reward of HalfCheetah-v5, put together again from its terms."""

    env_id = "HalfCheetah-v5"

    def step(self, data, action, memory, terms):
        return terms.forward - terms.control, terms.terminated > 0
