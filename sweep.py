"""Sweeps, without a server or with W&B's.

python sweep.py check sweep.yaml                        what W&B would reject or misread

Without an account or a network:
python sweep.py run sweep.yaml --count 20 --workers 2   the search; stop it, call it again
python sweep.py status sweeps/NAME                      how it stands, also while it runs
python sweep.py confirm sweeps/NAME --top 3 --seeds 3   is the winner's lead more than noise?
python sweep.py push sweeps/NAME                        hands all of it over to W&B

With W&B:
wandb sweep sweep.yaml                                  puts it on the server, prints its id
python sweep.py agents ENTITY/tinysweep/ID              an agent a GPU
python sweep.py agents ENTITY/tinysweep/ID --workers 4  four agents on the CPU's cores
python sweep.py agents ENTITY/tinysweep/ID --print-slurm > sweep.sbatch
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import cli
import hyperband
import sweep_file
import sweep_parameters
from cli import Mistake


def check(options) -> int:
    sweep = sweep_file.read(options.file)
    if not is_sound(sweep, options.file):
        return 2
    print(f"{options.file}: {describe(sweep)}")
    return 0


def is_sound(sweep: dict, file: Path) -> bool:
    """Says what is wrong with a sweep, a line each; warnings leave it sound."""
    found = sweep_file.check(sweep, file.parent)
    for line in found.warnings:
        print(f"warning: {file}: {line}", file=sys.stderr)
    for line in found.errors:
        print(f"error: {file}: {line}", file=sys.stderr)
    return not found.errors


def describe(sweep: dict) -> str:
    searched = {
        name: spec
        for name, spec in sweep["parameters"].items()
        if sweep_parameters.distribution(spec) != "constant"
    }
    parts = [f"{sweep['method']} over {', '.join(searched) or 'nothing'}"]
    if sweep.get("metric"):
        parts.append(f"{sweep['metric'].get('goal', 'minimize')} {sweep['metric']['name']}")
    epochs = sweep_file.most_epochs(sweep)
    if sweep.get("early_terminate"):
        at = [band for band in hyperband.bands(sweep["early_terminate"], epochs) if band < epochs]
        stops = f"runs are compared after {', '.join(map(str, at)) or 'no'} of {epochs} epochs"
        parts.append(stops)
    else:
        parts.append(f"{epochs} epochs a run")
    cap = sweep.get("run_cap")
    parts.append(f"{cap} runs" if cap else "runs without end (no run_cap)")
    return "; ".join(parts)


def agents(options) -> int:
    import agents

    return agents.main(options)


def run(options) -> int:
    """The offline search."""
    sweep = sweep_file.read(options.file)
    if not is_sound(sweep, options.file):
        return 2
    if not sweep.get("metric"):
        raise Mistake(f"{options.file}: metric is missing: trials are compared by it")
    caps = [cap for cap in (options.count, sweep.get("run_cap")) if cap]
    import offline

    return offline.run(options, sweep, min(caps, default=None))


def status(options) -> int:
    import offline

    return offline.status(options)


def confirm(options) -> int:
    import offline

    return offline.confirm(options)


def push(options) -> int:
    import offline

    return offline.push(options)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of 1 or more")
    return int(text)


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="python sweep.py", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    text = "say what W&B would reject or silently misread; exit status 2 where it matters"
    checks = commands.add_parser("check", help=text, description=text)
    checks.add_argument("file", type=Path, metavar="FILE")
    checks.set_defaults(command=check)

    _add_offline(commands)
    text = "one pinned `wandb agent -f` a GPU, or several on the CPU; SIGTERM preempts their runs"
    many = commands.add_parser("agents", help=text, description=text)
    many.add_argument("sweep", metavar="ENTITY/PROJECT/ID")
    many.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="agents (default: one a GPU; without GPUs 1); for --print-slurm: tasks (4)",
    )
    many.add_argument("--count", type=int, metavar="N", help="runs in all of each agent")
    many.add_argument(
        "--max-failures", type=int, default=5, metavar="N", help="in a row, then stop (default: 5)"
    )
    _add_devices(many)
    many.add_argument("--print-slurm", action="store_true", help="print an sbatch script instead")
    many.set_defaults(command=agents)
    return parser


def _add_offline(commands) -> None:
    text = "the sweep without a server: each trial a process of its own, the study in a folder"
    runs = commands.add_parser("run", help=text, description=text)
    runs.add_argument("file", type=Path, metavar="FILE")
    runs.add_argument(
        "--dir", type=Path, metavar="DIR", help="the study's folder (default: sweeps/<name>)"
    )
    runs.add_argument(
        "--count",
        type=positive,
        metavar="N",
        help="trials of the study in all, also after a restart",
    )
    _add_places(runs)
    runs.set_defaults(command=run)

    text = "how a study stands; also while it runs, also from another machine"
    _add_for_study(commands, "status", text, status)

    text = "the best trials again with other seeds: is the winner's lead more than noise?"
    again = _add_for_study(commands, "confirm", text, confirm)
    again.add_argument("--top", type=positive, default=3, metavar="K", help="trials (default: 3)")
    again.add_argument("--seeds", type=positive, default=3, metavar="N", help="each (default: 3)")
    _add_places(again)

    text = "hand a study over to W&B: its runs, and a sweep that goes on with them"
    _add_for_study(commands, "push", text, push)


def _add_for_study(commands, name: str, text: str, command: Callable) -> cli.Parser:
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("dir", type=Path, metavar="DIR", help="the study's folder: sweeps/NAME")
    parser.set_defaults(command=command)
    return parser


def _add_places(parser: cli.Parser) -> None:
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="trials at once (default: one a GPU; without GPUs 1, with all cores)",
    )
    _add_devices(parser)
    parser.add_argument(
        "--max-failures",
        type=positive,
        default=5,
        metavar="N",
        help="in a row, then stop (default: 5)",
    )


def _add_devices(parser: cli.Parser) -> None:
    parser.add_argument(
        "--devices",
        type=positive,
        default=1,
        metavar="N",
        help="GPUs of each run (without GPUs: processes); with more than 1, torchrun starts it "
        "(default: 1)",
    )


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    return options.command(options)


if __name__ == "__main__":
    cli.run(main)
