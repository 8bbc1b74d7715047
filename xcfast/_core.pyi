"""The compiled core.

Kernels take plain arrays: exactly numpy.ndarray, C-contiguous, aligned, native dtype, matching shapes. They write their
results into output arrays, which must not share memory with other arguments. For anything else they do nothing and
return False or None, and the public wrappers convert the arguments or raise an error. Array arguments are `Any` here,
because the wrappers pass on whatever their users gave them.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from typing_extensions import Buffer

# --- kernels (csrc/bind_kernels.cpp): also in xcfast.kernels.numba.impl, except where noted ---

def gae(
    rewards: Any,
    values: Any,
    terminated: Any,
    truncated: Any,
    last_values: Any,
    final_values: Any,
    next_values: Any,
    gamma: float,
    gae_lambda: float,
    advantages: Any,
    returns: Any,
    /,
) -> bool: ...
def discounted_returns(
    rewards: Any,
    terminated: Any,
    truncated: Any,
    last_values: Any,
    final_values: Any,
    next_values: Any,
    gamma: float,
    returns: Any,
    /,
) -> bool: ...
def moments_update(batch: Any, mean: Any, var: Any, count: Any, /) -> bool: ...
def normalize(
    x: Any, mean: Any, var: Any, count: Any, epsilon: float, epsilon_outside: bool, clip: float, out: Any, /
) -> bool: ...
def update_and_normalize(
    x: Any, mean: Any, var: Any, count: Any, epsilon: float, epsilon_outside: bool, clip: float, out: Any, /
) -> bool: ...
def normalize_and_track(
    obs: Any,
    mean: Any,
    var: Any,
    count: Any,
    epsilon: float,
    epsilon_outside: bool,
    clip: float,
    counts: Any,
    means: Any,
    m2s: Any,
    out: Any,
    /,
) -> bool: ...
def cast_and_track(obs: Any, poison: Any, out: Any, /) -> bool: ...
def merge_tracked(counts: Any, means: Any, m2s: Any, mean: Any, var: Any, count: Any, /) -> bool: ...
def normalize_rewards(
    rewards: Any,
    done: Any,
    gamma: float,
    carry: Any,
    scratch: Any,
    mean: Any,
    var: Any,
    count: Any,
    epsilon: float,
    epsilon_outside: bool,
    clip: float,
    out: Any,
    /,
) -> bool: ...
def store_step(
    step: int,
    obs_buffer: Any,
    actions_buffer: Any,
    rewards_buffer: Any,
    terminated_buffer: Any,
    truncated_buffer: Any,
    episode_returns: Any,
    episode_lengths: Any,
    episodes: Any,
    num_episodes: int,
    cuts: Any,
    num_cuts: int,
    num_final: int,
    obs: Any,
    actions: Any,
    rewards: Any,
    terminated: Any,
    truncated: Any,
    /,
) -> tuple[int, int] | None: ...
def gather(indices: Any, sources: Any, destinations: Any, /) -> bool: ...
def minibatch_indices(
    seed: int,
    iteration: int,
    epoch: int,
    num_steps: int,
    num_envs: int,
    n_minibatch: int,
    env_offset: int,
    indices: Any,
    offsets: Any,
    steps: Any,
    /,
) -> bool: ...
def gaussian_noise(seed: int, env_offset: int, counters: Any, out: Any, /) -> bool: ...
def uniform_noise(seed: int, env_offset: int, counters: Any, out: Any, /) -> bool: ...

# --- of the compiled core only ---

def philox4x32(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]: ...
def inverse_normal_cdf(u: float) -> float: ...
def build_info() -> dict[str, Any]: ...
def use_variant(name: str) -> None: ...

# --- the native learner (csrc/bind_nn.cpp): xcfast.learners.native documents it ---

class Learner:
    def __init__(
        self,
        *,
        layers: Sequence[tuple[int, int, int, int, int, int]],
        actor_head: int,
        critic_head: int,
        log_std: int,
        n_obs: int,
        parameters: Any,
        exp_avg: Any,
        exp_avg_sq: Any,
        loss: tuple[float, float, float],
        adam: tuple[float, float, float],
        max_minibatch: int,
        num_threads: int,
        kl_penalty: bool = False,
        precision: str = "fp32",
        variant: str | None = None,
        value_range: float = ...,
    ) -> None: ...
    @property
    def kl_coef(self) -> float: ...
    @kl_coef.setter
    def kl_coef(self, arg1: float) -> None: ...
    @property
    def gradient(self) -> Any: ...
    def evaluate(self, obs: Any, actions: Any, action_masks: Any = None) -> tuple[Any, Any]: ...
    def compute_gradients(
        self,
        obs: Any,
        actions: Any,
        log_probs: Any,
        advantages: Any,
        returns: Any,
        normalize_advantages: bool,
        indices: Any = None,
        old_outputs: Any = None,
        old_log_std: Any = None,
        action_masks: Any = None,
        old_values: Any = None,
    ) -> list[float]: ...
    def apply(self, learning_rate: float, max_norm: float, step: int) -> float: ...
    def update(
        self,
        *,
        rollout: dict[str, Any],
        gamma: float,
        gae_lambda: float,
        normalize_advantages: bool,
        max_norm: float,
        seed: int,
        iteration: int,
        n_epochs: int,
        n_minibatch: int,
        learning_rates: Any,
        steps_done: int,
        max_approx_kl: float = ...,
    ) -> list[float]: ...
    def begin_update(
        self,
        *,
        rollout: dict[str, Any],
        gamma: float,
        gae_lambda: float,
        normalize_advantages: bool,
        seed: int,
        iteration: int,
        n_epochs: int,
        n_minibatch: int,
        env_offset: int,
    ) -> Any: ...
    def minibatch_gradients(self, index: int, total: int, mean: float, square: float) -> list[float]: ...

def nn_activation(activation: int, x: Any, variant: str | None = None) -> Any: ...
def nn_variants(precision: str = "fp32") -> list[str]: ...
def nn_hardware(precision: str) -> str | None: ...

# --- lock-step with worker processes (csrc/bind_sync.cpp) ---

class Sync:
    """Lock-step of one parent with worker processes over a block of shared memory."""

    nbytes: ClassVar[int]
    def __init__(self, buffer: Buffer, spin_seconds: float, spin_yields: bool) -> None: ...
    def publish(self, opcode: int, num_workers: int) -> None: ...
    def wait_command(self, timeout: float) -> int: ...
    def finish(self, failed: bool) -> None: ...
    def wait_finished(self, timeout: float) -> int: ...

def watch_parent(fd: int, parent_pid: int) -> None: ...

# --- native environments (csrc/bind_envs.cpp, bind_mujoco.cpp, bind_classic.cpp) ---

class ThreadPool:
    """A pool of threads that divides independent tasks among them."""

    def __init__(self, num_threads: int) -> None: ...
    @property
    def num_threads(self) -> int: ...
    def stop(self) -> None: ...

class EnvEngine:
    """N environments of one kind; see xcfast/envs/native.py."""

    def step(self, autoreset: bool) -> int: ...
    def reset(self, indices: Sequence[int]) -> None: ...

def mujoco_engine(
    task: str,
    setup: dict[str, Any],
    api: dict[str, int],
    config: dict[str, int],
    simulations: list[dict[str, int]],
    arrays: dict[str, Any],
    pool: ThreadPool,
    keep_alive: object,
    own: dict[str, Any] | None = None,
) -> EnvEngine: ...
def classic_engine(
    task: str, values: dict[str, float], config: dict[str, int], arrays: dict[str, Any], pool: ThreadPool
) -> EnvEngine: ...
def mujoco_errors_arrive(api: dict[str, int]) -> bool: ...

# --- policy and physics in one loop (csrc/bind_collector.cpp) ---

class EnvLoop:
    """Policy and EnvEngine in one loop; see xcfast/collectors/native.py."""

    def __init__(
        self,
        *,
        engine: EnvEngine,
        layers: Sequence[tuple[int, int, int, int, int, int]],
        actor_head: int,
        critic_head: int,
        log_std: int,
        n_obs: int,
        n_parameters: int,
        low: Any,
        high: Any,
        scale: Any,
        offset: Any,
        normalizer: dict[str, Any],
        normalize: bool,
        clip: float,
    ) -> None: ...
    def load(self, parameters: Any, deviation: Any, epsilon: float, epsilon_outside: bool) -> None: ...
    def begin_collection(
        self,
        *,
        rollout: dict[str, Any],
        tracked: dict[str, Any],
        seed: int,
        env_offset: int,
        counters: Any,
        ahead: Any | None,
        begin: int,
        end: int,
    ) -> None: ...
    def begin_evaluation(self, quota: int) -> None: ...
    def run(self, seconds: float) -> bool: ...
    def episodes_ended(self) -> int: ...
    def end_collection(self) -> tuple[bytes, Any, Any, int]: ...
    def end_evaluation(self) -> Any: ...
