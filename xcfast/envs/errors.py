"""What can go wrong with environments and their workers."""


class EnvError(ValueError):
    """An environment that cannot be made, or not used here; the message says what to do."""


class NotNativeError(EnvError):
    """An environment that the native engine cannot step; the message is the reason, as the end of a sentence."""


class SimulationError(RuntimeError):
    """MuJoCo raised an error in an environment of MujocoVecEnv; `reset` starts the environments anew.

    Attributes:
        env_index: index of the environment.
    """

    def __init__(self, message: str, env_index: int) -> None:
        super().__init__(message)
        self.env_index = env_index


class WorkerError(RuntimeError):
    """An environment raised in a worker process; the worker lives on, and `reset` starts its environments anew.

    Attributes:
        worker: index of the worker.
        env_index: index of the environment, None where it is not known.
        exception_type: name of the class of the exception in the worker, "" if there was none.
        exception_message: its text.
    """

    def __init__(
        self,
        message: str,
        *,
        worker: int | None = None,
        env_index: int | None = None,
        exception_type: str = "",
        exception_message: str = "",
    ) -> None:
        super().__init__(message)
        self.worker = worker
        self.env_index = env_index
        self.exception_type = exception_type
        self.exception_message = exception_message


class WorkerDiedError(WorkerError):
    """A worker process ended by itself or was killed; the vector environment is closed."""


class WorkerTimeoutError(WorkerError):
    """A worker process did not answer in time; the vector environment is closed."""
