"""Processes that act as the ranks of one job after another, so that each imports torch only once."""

import ctypes
import functools
import multiprocessing
import os
import signal
import socket
import time
import traceback
from datetime import timedelta

import numpy as np
import torch
from torch.distributed import TCPStore

from xcfast.ranks import group
from xcfast.ranks.group import Ranks


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def host_store():
    """Returns a store of this process, at which ranks meet as under torchrun.

    A port that was only probed may be taken by then, and the ranks that wait there for rank 0 would not answer.
    """
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


ENDED = "the process ended"


class Pool:
    """Processes that run one job after another as ranks.

    ``pool(num_ranks, job, *args)`` returns what ``job(*args)`` returned on each rank: its exception if it raised one,
    and ``ENDED`` where the process was killed. A process that ended is replaced before the next job. Each job has a new
    store, unless it is given one (``store=``).
    """

    def __init__(self, size):
        self._context = multiprocessing.get_context("spawn")
        self._ranks = [self._start() for _ in range(size)]

    def __call__(self, num_ranks, job, *args, store=None, **kwargs):
        self._ranks = [rank if rank[1].is_alive() else self._start() for rank in self._ranks]
        store = store or host_store()
        ranks = self._ranks[:num_ranks]
        for rank, (pipe, _) in enumerate(ranks):
            pipe.send((rank, num_ranks, store.port, functools.partial(job, *args, **kwargs)))
        results = []
        for pipe, process in ranks:
            if not pipe.poll(100):
                self.close()  # which leaves new ones to the next job
                raise AssertionError("a rank does not answer")
            try:
                results.append(pipe.recv())
            except EOFError:
                process.join()
                results.append(ENDED)
        return results

    def close(self):
        for _, process in self._ranks:
            process.kill()
            process.join()

    def _start(self):
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()  # so that only the process holds it, and its death ends the pipe
        return ours, process


def good(results):
    """Returns the results of a job after a check that no rank raised an exception."""
    for result in results:
        assert not isinstance(result, Exception), result
    return results


def _serve(pipe):
    torch.set_num_threads(1)
    while True:
        rank, num_ranks, port, job = pipe.recv()
        number = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
        os.environ.update({name: str(value) for name, value in number.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
        os.environ.update(TORCHELASTIC_USE_AGENT_STORE="True", TORCHELASTIC_RESTART_COUNT="0")
        try:
            result = job()
        except Exception as error:
            error.__traceback__ = None
            result = RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        pipe.send(result)


# --- jobs


def with_ranks(work, *args):
    """Returns ``work(ranks, *args)``, called in a process group."""
    ranks = Ranks.start(cuda=False)
    try:
        return work(ranks, *args)
    finally:
        ranks.close()


def exchange(ranks):
    """Returns what every collective operation returns on this rank."""
    rows = ranks.rows(7)
    part = np.arange(7.0)[rows.start : rows.stop, None] * [1.0, np.pi]
    total = np.full(3, 10.0**ranks.rank, np.float32)
    tensor = torch.full((2,), float(ranks.rank))
    return {
        "rank": ranks.rank,
        "sharing": ranks.sharing,
        "sum": ranks.sum_(total),
        "same": ranks.sum_(total) is total,
        "broadcast": ranks.broadcast_(tensor).tolist(),
        "join": ranks.join(part, rows, 7),
        "join_tensor": ranks.join(torch.tensor([ranks.rank]), range(ranks.rank, ranks.rank + 1), ranks.world_size),
        "gather": ranks.gather({"rank": ranks.rank}),
        "object": ranks.broadcast(f"of {ranks.rank}"),
        "any": (ranks.any_(ranks.rank == 1), ranks.any_(False)),
    }


def fail_later_on(ranks, failing, meet):
    """Returns what this rank raises in ``meet`` after some ranks have deferred a failure, and whether it worked."""
    message, entered = None, []
    with ranks.deferred():
        if ranks.rank in failing:
            raise ValueError(f"broken {ranks.rank}")
    try:
        meet(ranks, lambda: entered.append(True))
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
    with ranks.together():  # the failure is raised only once
        pass
    return message, bool(entered)


def meet_together(ranks, work):
    with ranks.together():
        work()


def meet_from_main(ranks, work):
    ranks.from_main(work)


def fail_on(ranks, failing):
    """Returns what this rank raises when some ranks fail in a block, the cause, and a sum over the ranks after that."""
    message = cause = None
    try:
        with ranks.together():
            if ranks.rank in failing:
                raise ValueError(f"broken {ranks.rank}")
    except Exception as error:
        message, cause = f"{type(error).__name__}: {error}", type(error.__cause__).__name__
    return message, cause, int(ranks.sum_(np.ones(1, np.int64))[0])


def compute_on_main(ranks, what):
    """Returns what ``from_main`` returns or raises on this rank, the cause, and a sum over the ranks after that."""

    def compute():
        assert ranks.is_main
        if what == "raise":
            raise KeyError("no such file")
        return {"value": np.arange(3.0), "unpicklable": lambda: None} if what == "unpicklable" else np.arange(3.0)

    try:
        value, cause = ranks.from_main(compute), None
    except Exception as error:
        value, cause = f"{type(error).__name__}: {error}", type(error.__cause__).__name__
    return value, cause, int(ranks.sum_(np.ones(1, np.int64))[0])


OPERATIONS = {
    "sum_": lambda ranks, seconds: ranks.sum_(np.ones(1000)),
    "from_main": lambda ranks, seconds: ranks.from_main(lambda: time.sleep(seconds)),
    "agree": lambda ranks, seconds: ranks.agree("train(40)"),
    "together": lambda ranks, seconds: meet_together(ranks, lambda: None),
    "close": lambda ranks, seconds: ranks.close(),
}


def lose(ranks, victim, how, operation):
    """Returns what this rank raises in an operation, and after how many seconds. One rank ends after half a second."""
    start = time.monotonic()
    if ranks.rank == victim:
        time.sleep(0.5)
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.close("ValueError: broken")
        return None
    try:
        OPERATIONS[operation](ranks, 1.0)
    except Exception as error:
        ranks.close(f"{type(error).__name__}: {error}")  # does not replace the report of the first failure
        return f"{type(error).__name__}: {error}", time.monotonic() - start
    return "nothing", time.monotonic() - start


def impatient(operations, late=(), seconds=0.0):
    """Returns what this rank raises in its own operation, and after how many seconds, with a time-out of two seconds.

    Late ranks first spend some seconds in a C function that holds the interpreter's lock.
    """
    group.TIMEOUT = timedelta(seconds=2)
    try:
        ranks = Ranks.start(cuda=False)
    finally:
        group.TIMEOUT = _TIMEOUT
    start, raised, hold = time.monotonic(), None, ctypes.PyDLL(None).usleep
    try:
        if operations[ranks.rank] == "from_main":
            ranks.from_main(lambda: hold(int(1e6 * seconds)) if late else None)
        else:
            if ranks.rank in late:
                hold(int(1e6 * seconds))
            OPERATIONS[operations[ranks.rank]](ranks, 0.0)
    except Exception as error:
        raised = f"{type(error).__name__}: {error}"
    waited = time.monotonic() - start
    ranks.close(raised)
    return raised, waited


_TIMEOUT = group.TIMEOUT


def hold_the_lock(ranks, seconds):
    """Returns a sum over the ranks. Rank 1 comes late, out of a C function that holds the interpreter's lock."""
    if ranks.rank == 1:
        ctypes.PyDLL(None).usleep(int(1e6 * seconds))
    return float(ranks.sum_(np.ones(1))[0])


def iterate(ranks, config, iterations=1, resume=None):
    """Returns the first rollout of a run, and what all ranks should hold after some iterations."""
    from xcfast.runs.trainer import Trainer

    trainer = Trainer(config, "train", resume, quiet=True, ranks=ranks)
    try:
        if resume is None:
            trainer.start()
        first = None
        collect = trainer.components.collector.collect

        def recorded(rollout, num_steps=None):
            nonlocal first
            collect(rollout)
            if first is None:
                names = ("obs", "actions", "rewards", "terminated", "truncated", "last_obs")
                first = {name: getattr(rollout, name).copy() for name in names}
                first["counters"] = trainer.components.collector.noise.counters.copy()

        metrics = []
        update = trainer.components.learner.update
        trainer.components.learner.update = lambda *parts: metrics.append(update(*parts)) or metrics[-1]
        trainer.components.collector.collect = recorded
        for _ in range(iterations):
            trainer.iterate()
        adam = trainer.components.learner.state_dict()["optimizer"]["state"]
        return {
            "first": first,
            "weights": {name: value.numpy().copy() for name, value in trainer.components.policy.state_dict().items()},
            "adam": [(float(one["step"]), one["exp_avg"].numpy().copy()) for one in adam.values()],
            "obs": trainer.components.obs_normalizer.rms.state_dict(),
            "rewards": trainer.components.reward_normalizer.rms.state_dict(),
            "returns": trainer.components.reward_normalizer.returns.copy(),
            "step": trainer.step,
            "metrics": metrics,
        }
    finally:
        trainer.close()


def whole_run(config, resume=None, stop_on=None, break_on=None, break_log=None, mode="train"):
    """Returns the summary or the failure of a run.

    Args:
        config: The run's configuration.
        resume: The run to resume, or None.
        stop_on: The rank that gets a signal in the third iteration.
        break_on: The rank whose environments fail in the third iteration.
        break_log: The method of the log that fails.
        mode: The mode of the run.
    """
    from xcfast import run
    from xcfast.errors import RunFailed
    from xcfast.output.run_log import RunLog
    from xcfast.runs.trainer import Trainer

    rank = int(os.environ["RANK"])
    iterate_once = Trainer.iterate

    def patched(self):
        if self.progress.iteration == 2 and rank == stop_on:
            signal.raise_signal(signal.SIGTERM)
        if self.progress.iteration == 2 and rank == break_on:

            def step(actions):
                raise ValueError("the simulator broke")

            self.components.envs.step = step
        iterate_once(self)

    def broken(self, *args, **more):
        raise OSError("nobody listens")

    Trainer.iterate = patched
    method = getattr(RunLog, break_log or "iteration")
    if break_log is not None:
        setattr(RunLog, break_log, broken)
    try:
        return run(config, mode, resume, quiet=True).to_dict()
    except RunFailed as error:
        return str(error), error.expected, error.known
    finally:
        Trainer.iterate = iterate_once
        setattr(RunLog, break_log or "iteration", method)


def cuda_update(ranks, config, iterations=1):
    """Returns what ``iterate`` returns with the learner for CUDA devices, which runs on the CPU as well."""
    from xcfast.learners.cuda import CudaLearner
    from xcfast.runs import components as module

    make_learner = module.make_learner
    device = torch.device("cpu")
    module.make_learner = lambda config, policy, rollout, rewards, threads, ranks, *_: (
        CudaLearner(policy, config, rollout, rewards, device, ranks),
        "on the CPU",
    )
    try:
        return iterate(ranks, config, iterations)
    finally:
        module.make_learner = make_learner


class _Evaluate(torch.nn.Module):
    """A module whose ``forward`` evaluates a policy's actions, since DistributedDataParallel wraps ``forward``."""

    def __init__(self, policy):
        super().__init__()
        self.policy = policy

    def forward(self, obs, actions):
        return self.policy.evaluate(obs, actions)


def gradients(ranks, config):
    """Returns two gradients of the whole rollout: ours, from Adam's first moment, and DistributedDataParallel's."""
    import copy

    from xcfast.learners.loss import ppo_loss
    from xcfast.runs.trainer import Trainer

    trainer = Trainer(config, "train", None, quiet=True, ranks=ranks)
    try:
        trainer.start()
        before = copy.deepcopy(trainer.components.policy)
        trainer.components.collector.collect(trainer.components.rollout)
        trainer.components.policy.zero_grad()  # as a script may do: it replaces the gradients by None
        trainer.components.learner.update(trainer.components.rollout, 0)
        state = trainer.components.learner.state_dict()["optimizer"]["state"]
        ours = [one["exp_avg"].numpy() / 0.1 for one in state.values()]

        rollout, rows = trainer.components.rollout, ranks.rows(config.parallels)
        everyone = ranks.join(np.ascontiguousarray(rollout.advantages.T), rows, config.parallels).astype(np.float64)
        advantages = ((rollout.advantages - everyone.mean()) / (everyone.std() + 1e-8)).astype(np.float32)
        parts = (rollout.obs, rollout.actions, rollout.log_probs, advantages, rollout.returns)
        obs, actions, log_probs, advantages, returns = (
            torch.from_numpy(x.reshape(-1, *x.shape[2:]).copy()) for x in parts
        )
        model = torch.nn.parallel.DistributedDataParallel(_Evaluate(before))
        new_log_probs, entropy, values = model(obs, actions)
        coefficients = {name: getattr(config, name) for name in ("clip_range", "vf_coef", "ent_coef")}
        loss = ppo_loss(new_log_probs, entropy, values, log_probs, advantages, returns, **coefficients).loss
        # It averages over the ranks; ours sum over samples and divide by their number.
        (loss * (len(rows) * ranks.world_size / config.parallels)).backward()
        return ours, [p.grad.numpy() for p in before.parameters()]
    finally:
        trainer.close()
