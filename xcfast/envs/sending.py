"""Sends what a script has registered with Gymnasium to processes that do not run the script."""

import base64
import pickle
from typing import Any

import cloudpickle
import gymnasium

from xcfast.envs.construct import env_constructor
from xcfast.errors import EnvError


def to_send(value: Any, what: str) -> bytes:
    """Returns a pickled value, with the classes and functions of the main script by their code.

    Args:
        value: The value.
        what: What it is, for the message.

    Raises:
        EnvError: It holds something that cannot be pickled, such as a lock, a file or a connection.
    """
    try:
        return cloudpickle.dumps(value)
    except (pickle.PicklingError, TypeError, ValueError, AttributeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EnvError(f"{what} cannot be sent to another process: {reason}") from error


def registration_of(env_id: str) -> str | None:
    """Returns what this process knows of an id, as a text for `register_text`; None where it is not registered.

    Raises:
        EnvError: The registration cannot be pickled.
    """
    spec = env_constructor(env_id, {}).spec
    if spec is None:
        return None
    return base64.b64encode(to_send(spec, f"the registration of {env_id!r}")).decode("ascii")


def register_text(text: str) -> None:
    """Registers what `registration_of` returned, in place of what the id meant here."""
    spec = pickle.loads(base64.b64decode(text))
    gymnasium.registry[spec.id] = spec
