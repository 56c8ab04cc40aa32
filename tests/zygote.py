"""Starts train.py without its 15 s of imports: imports once, then forks a process for each run.

A line of JSON on stdin is a run: {"arguments", "env", "output", "patch"}. Answers are lines on
stdout: "pid N" at once, "exit N STATUS" when it has ended (STATUS as os.waitpid has it). A run is a
process of its own in a session of its own, so that signals reach it as they would from a shell.
Nothing here computes: threads do not survive a fork.
"""

import json
import os
import select
import signal
import sys


def import_everything() -> None:
    import pytorch_grad_cam
    import torch._dynamo
    import wandb

    import augment
    import learner
    import train
    import viz

    augment.albumentations_functions()
    assert wandb and learner and train and torch and pytorch_grad_cam and viz


def start(arguments: list[str], env: dict[str, str], output: str, patch: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for target in (1, 2):
        os.dup2(file, target)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["train.py", *arguments]
    own_media_folder()
    import cli
    import train

    exec(patch, {"os": os, "train": train})  # a fault to cause, or a pause to hit
    try:
        cli.run(train.command)
    except SystemExit as done:
        sys.stdout.flush()
        sys.stderr.flush()
        # As the interpreter would: W&B's client ends its service there.
        import atexit

        atexit._run_exitfuncs()
        os._exit(done.code if isinstance(done.code, int) else 1)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def own_media_folder() -> None:
    """W&B makes a folder at import and removes it at exit: the first run's exit would be all's."""
    import tempfile

    from wandb.sdk.data_types._private import MEDIA_TMP

    MEDIA_TMP.name = tempfile.mkdtemp("wandb-media")


def main() -> None:
    import_everything()
    print("ready", flush=True)
    running = set()
    while True:
        if select.select([sys.stdin], [], [], 0.02)[0]:
            line = sys.stdin.readline()
            if not line:
                return
            pid = start(**json.loads(line))
            running.add(pid)
            print(f"pid {pid}", flush=True)
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.remove(pid)
                print(f"exit {pid} {status}", flush=True)


if __name__ == "__main__":
    main()
