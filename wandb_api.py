"""W&B's server, asked through its own client: login, environment, and errors as one line."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cli import Failure, Mistake
from wandb_client import check_settings, reason_of

if TYPE_CHECKING:
    import wandb

TIMEOUT_S = 20  # of one question to the server
MOST_ROWS = 100_000  # of a history; above that W&B draws a sample
# Of W&B's environment; what is about one run would be taken for all of them.
ABOUT_A_RUN = (
    *("MODE", "RUN_ID", "RESUME", "SWEEP_ID", "SWEEP_PARAM_PATH"),
    *("NAME", "NOTES", "TAGS", "JOB_TYPE", "RUN_GROUP", "SERVICE"),
)
PATIENCE = {  # a minute for a request that fails; the client's own default is many
    f"WANDB_X_{what}_RETRY_{key}": value
    for what in ("GRAPHQL", "FILE_STREAM", "FILE_TRANSFER")
    for key, value in (("MAX", "8"), ("WAIT_MIN_SECONDS", "1"), ("WAIT_MAX_SECONDS", "10"))
}


@contextmanager
def online() -> Iterator[None]:
    """W&B's environment for asking the server; nothing of the client's own stays behind."""
    before = dict(os.environ)
    mode = os.environ.get("WANDB_MODE", "online")
    if mode != "online":
        print(f"WANDB_MODE={mode} is for runs; this goes to the server")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        for key in ABOUT_A_RUN:
            os.environ.pop(f"WANDB_{key}", None)
        os.environ.update({**PATIENCE, **os.environ, "WANDB_SILENT": "true"})
        os.environ.update({"WANDB_DIR": scratch, "WANDB_DATA_DIR": scratch})
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)


def login(again: str, timeout_s: int | None = None) -> "wandb.Api":
    """The client, once the server has accepted the key; `again`: what the user is to do then."""
    import wandb

    check_settings()
    try:
        return wandb.Api(timeout=timeout_s or TIMEOUT_S)
    except wandb.errors.UsageError:
        raise Mistake(f"there is no W&B login here: `wandb login`, then {again}") from None
    except wandb.errors.AuthenticationError as error:
        raise _refused(error, again) from error


@contextmanager
def asked(api: "wandb.Api", hint: str) -> Iterator[None]:
    """What goes wrong at the server becomes one line that ends with `hint`."""
    from wandb.errors import Error
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    try:
        yield
    except (Error, WandbApiFailedError, TimeoutError) as error:
        url = api.settings["base_url"]
        raise Failure(f"W&B at {url}: {reason_of(error)}; {hint}") from error


def _refused(error: Exception, again: str) -> Exception:
    """A wrong key is the user's mistake; a server that does not answer is not."""
    from wandb.sdk.lib.service.service_connection import WandbApiFailedError

    cause = error.__cause__
    was_asked = isinstance(cause, WandbApiFailedError)  # otherwise the key has no valid form
    if was_asked and (cause.response is None or cause.response.http_status not in (401, 403)):
        return Failure(f"W&B cannot be reached ({reason_of(error)}); {again} later")
    return Mistake(f"W&B refuses the login ({reason_of(error)}): `wandb login --relogin`")
