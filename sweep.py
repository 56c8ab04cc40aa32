"""Sweeps: check a sweep's file, and run its agents on every device of a machine.

python sweep.py check sweep.yaml                        what W&B would reject or misread
wandb sweep sweep.yaml                                  puts it on the server, prints its id
python sweep.py agents ENTITY/tinysweep/ID              an agent a GPU
python sweep.py agents ENTITY/tinysweep/ID --workers 4  four agents on the CPU's cores
python sweep.py agents ENTITY/tinysweep/ID --print-slurm > sweep.sbatch
"""

import sys
from pathlib import Path

import cli
import sweep_file


def check(options) -> int:
    sweep = sweep_file.read(options.file)
    found = sweep_file.check(sweep, options.file.parent)
    for line in found.warnings:
        print(f"warning: {options.file}: {line}", file=sys.stderr)
    for line in found.errors:
        print(f"error: {options.file}: {line}", file=sys.stderr)
    if found.errors:
        return 2
    print(f"{options.file}: {describe(sweep)}")
    return 0


def describe(sweep: dict) -> str:
    searched = {
        name: spec
        for name, spec in sweep["parameters"].items()
        if sweep_file.distribution(spec) != "constant"
    }
    parts = [f"{sweep['method']} over {', '.join(searched) or 'nothing'}"]
    if sweep.get("metric"):
        parts.append(f"{sweep['metric'].get('goal', 'minimize')} {sweep['metric']['name']}")
    epochs = sweep_file.most_epochs(sweep)
    if sweep.get("early_terminate"):
        at = [band for band in sweep_file.bands(sweep["early_terminate"], epochs) if band < epochs]
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


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="python sweep.py", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    text = "say what W&B would reject or silently misread; exit status 2 where it matters"
    checks = commands.add_parser("check", help=text, description=text)
    checks.add_argument("file", type=Path, metavar="FILE")
    checks.set_defaults(command=check)

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
    many.add_argument("--print-slurm", action="store_true", help="print an sbatch script instead")
    many.set_defaults(command=agents)
    return parser


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    return options.command(options)


if __name__ == "__main__":
    cli.run(main)
