"""Compare runs and share them: one HTML file that opens from disk, without a network.

    python report.py runs                       every run in a folder -> report.html
    python report.py sweeps/NAME -o sweep.html  a study: its trials, by its own metric
    python report.py runs/A runs/B other/runs   any mix of runs, folders of runs and studies
    python report.py diff runs/A runs/B         what B fixed and broke against A -> diff.html
    python report.py --wandb ENTITY/PROJECT/SWEEP_ID               a report at W&B; its address
    python report.py --wandb ENTITY/PROJECT/SWEEP_ID --workspace   the charts as a W&B workspace
    python report.py --wandb ENTITY/PROJECT/SWEEP_ID -o FILE       the HTML file of W&B's runs

Without SWEEP_ID it is about all training runs of the project.

A few seconds for 50 runs. The page has the best run and how sure that is, a leaderboard, what the
parameters did, learning curves, the best run's mistakes, its classes, where it looked, the cost,
and how to make it again. Nothing is trained and no data are needed.
"""

import argparse
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cli
from cli import Mistake
from collection import PastRun, PastStudy, collect, is_run, read_run, read_studies


def make(
    runs: Sequence[PastRun], studies: Sequence[PastStudy], title: str, command: str, when: str
) -> str:
    """The page about these runs, as HTML."""
    import page
    import report_best
    import report_sections
    from report_findings import Findings
    from report_leaderboard import leaderboard

    findings = Findings.of(runs, studies)
    sections = [
        leaderboard(findings),
        report_sections.parameters(findings),
        report_sections.curves(findings),
    ]
    if findings.best:
        sections += [
            report_best.mistakes(findings),
            report_best.classes(findings),
            report_best.localisation(findings),
        ]
    sections += [report_sections.cost(findings), report_best.reproduce(findings, command)]
    lead = report_sections.headline(findings, title, when)
    return page.document(title, lead, [one for one in sections if one])


def check_output(output: Path) -> Path:
    """A mistake that would be a pity after the work."""
    if output.is_dir():
        raise Mistake(f"-o {output}: cannot be written (it is a folder)")
    if not output.parent.is_dir():
        raise Mistake(f"-o {output}: cannot be written ({output.parent} is no folder)")
    return output


def write(html: str, output: Path) -> None:
    """Whole or not at all; says where it is."""
    from run_folder import writing

    try:
        with writing(output) as file:
            file.write(html.encode("utf-8", "replace"))
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise Mistake(f"-o {output}: cannot be written ({error.strerror})") from error
    print(f"wrote {output} ({output.stat().st_size / 1e6:.1f} MB)")


def titled(runs: Sequence[PastRun], studies: Sequence[PastStudy]) -> str:
    """`demo: 4 runs on shapes`."""
    names = ", ".join(study.name for study in studies)
    sets = sorted({str(run.config.get("dataset", "unknown data")) for run in runs})
    many = f"{len(runs)} run{'s' * (len(runs) != 1)} on {' and '.join(sets)}"
    return f"{names}: {many}" if names else many


def _parser() -> cli.Parser:
    parser = cli.Parser(
        prog="python report.py",
        description=__doc__,
        usage="%(prog)s [PATH ... | --wandb ENTITY/PROJECT[/SWEEP_ID]] [-o FILE | --workspace]",
    )
    parser.add_argument(
        "paths",
        type=Path,
        nargs="*",
        default=[],
        metavar="PATH",
        help="a run, a folder of runs, or a study (default: runs)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="the page (default: report.html; with --wandb no page, but a report there)",
    )
    parser.add_argument(
        "--wandb",
        metavar="ENTITY/PROJECT[/SWEEP_ID]",
        help="runs that W&B has: publishes a report there, or writes the page with -o",
    )
    parser.add_argument(
        "--workspace", action="store_true", help="with --wandb: save a workspace instead"
    )
    return parser


def diff(arguments: list[str]) -> int:
    """Two runs, image by image."""
    from config import add_looks, given
    from report_diff import diff_page
    from report_findings import names_of

    parser = cli.Parser(
        prog="python report.py diff",
        description="what RUN_B fixed and what it broke against RUN_A, image by image",
    )
    for name in ("run_a", "run_b"):
        parser.add_argument(name, type=Path, metavar=name.upper())
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("diff.html"), metavar="FILE", help="the page"
    )
    add_looks(parser)
    options = parser.parse_args(arguments)
    output = check_output(options.output)
    runs = [one_run(path) for path in (options.run_a, options.run_b)]
    # Two of the same id in different folders are to be told apart.
    runs = [replace(run, run_id=name) for run, name in zip(runs, names_of(runs), strict=True)]
    html, said = diff_page(*runs, given(options))
    print(said)
    write(html, output)
    return 0


def one_run(path: Path) -> PastRun:
    if not is_run(path):
        raise Mistake(f"{path} is no run's folder: it has no config.yaml")
    return read_run(path.resolve())


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["diff"]:
        return diff(arguments[1:])
    options = _parser().parse_args(arguments)
    command = shlex.join(["python", "report.py", *arguments])
    if options.workspace and not options.wandb:
        raise Mistake("--workspace is a view at W&B: give --wandb ENTITY/PROJECT as well")
    if options.wandb is not None:
        return at_wandb(options, command)
    output = check_output(options.output or Path("report.html"))
    paths = options.paths or [Path("runs")]
    write_page(collect(paths), read_studies(paths), command, output)
    return 0


def at_wandb(options: argparse.Namespace, command: str) -> int:
    """What `--wandb` asks for: a report there, a workspace there, or the page here."""
    if options.paths:
        raise Mistake("--wandb takes the runs from W&B, and PATH from this disk: give one of them")
    if options.workspace and options.output:
        raise Mistake("--workspace saves a view at W&B, and -o writes a file: give one of them")
    if options.output:
        from report_from_wandb import collect_from_wandb

        output = check_output(options.output)
        write_page(*collect_from_wandb(options.wandb), command, output)
        return 0
    from report_wandb import publish_report, save_workspace

    if options.workspace:
        print(save_workspace(options.wandb))
    else:
        print(publish_report(options.wandb, command))
    return 0


def write_page(
    runs: Sequence[PastRun], studies: Sequence[PastStudy], command: str, output: Path
) -> None:
    when = time.strftime("%-d %B %Y")
    write(make(runs, studies, titled(runs, studies), command, when), output)


if __name__ == "__main__":
    cli.run(main)
