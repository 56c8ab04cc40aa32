"""A report at W&B, and a workspace: the findings as text, the charts as panels that W&B draws.

    python report.py --wandb ENTITY/PROJECT/SWEEP_ID         a report about a sweep; its address
    python report.py --wandb ENTITY/PROJECT                  about all training runs of a project
    python report.py --wandb ENTITY/PROJECT --workspace      the panels as a view of the project

Half a minute for 50 runs. The panels follow the runs that come later; the text is of today.
"""

import importlib.util
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import report_wandb_text as text
from cli import Mistake
from measures import METRICS
from report_charts import METRIC_NAMES, name_of, short
from report_findings import ACCURACY, Findings, count
from report_from_wandb import AGAIN, Found, find, place_of
from report_parameters import scales
from wandb_api import asked, login, online

if TYPE_CHECKING:
    import wandb_workspaces.reports.v2 as wr

LONGEST_TITLE = 128  # what the client takes
COLUMNS, HEIGHT = 24, 8  # of a report's grid; of a panel in it
MOST_LINES = 50  # runs in a line plot; W&B's own default is 10
CURVES = ("val/acc", "train/acc", "val/loss", "lr")
LIFTS = ("val/cam_energy_lift", "val/cam_pointing_lift")


@dataclass(frozen=True)
class Chapter:
    title: str
    sentences: list[str]
    rows: list[list["wr.PanelTypes"]] = field(default_factory=list)  # of panels

    @property
    def panels(self) -> list["wr.PanelTypes"]:
        return [panel for row in self.rows for panel in row]


def publish_report(path: str, command: str) -> str:
    """Save a report about the runs of `path`, a new one with each call; its address.
    `command` is the one that makes it, for who wants it made again.
    """
    place = place_of(path)
    demand_workspaces()
    with online():
        api = login(AGAIN)
        found = find(api, place)
        report = report_of(found, command)
        with asked(api, AGAIN):
            report.save()
    # The client's own `report.url` loses the path of an app that is not at its server's root.
    slug = "-".join(re.findall(r"\w+", report.title, re.ASCII))
    return f"{found.address}/reports/{slug}--{report.id}"


def save_workspace(path: str) -> str:
    """Save the panels as a view of the project, a new one with each call; its address."""
    place = place_of(path)
    demand_workspaces()
    with online():
        api = login(AGAIN)
        found = find(api, place)
        workspace = workspace_of(found)
        with asked(api, AGAIN):
            workspace.save()
            view = urlsplit(workspace.url).query
    return f"{found.address}?{view}"


def demand_workspaces() -> None:
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise Mistake("wandb-workspaces is not installed: `pip install -r requirements.txt`")


def report_of(found: Found, command: str) -> "wr.Report":
    import wandb_workspaces.reports.v2 as wr

    findings = Findings.of(found.runs, found.studies)
    blocks = [paragraph(one, found) for one in text.headline(findings)]
    blocks += [wr.CalloutBlock(one) for one in text.notices(findings)]
    for chapter in chapters(findings, found.searched):
        blocks.append(wr.H2(chapter.title))
        blocks += [paragraph(one, found) for one in chapter.sentences]
        runs, panels = run_set(found, findings), laid_out(chapter.rows)
        blocks.append(wr.PanelGrid(runsets=[runs], panels=panels))
    blocks += [wr.H2("How to make it again"), *again(findings, command)]
    return wr.Report(
        entity=found.place.entity,
        project=found.place.project,
        title=title_of(found),
        description=str(findings.groups[0]),
        blocks=blocks,
        width="fluid",
    )


def title_of(found: Found) -> str:
    return short(f"{found.name}: {count(len(found.runs), 'run')}", LONGEST_TITLE)


def paragraph(sentence: str, found: Found) -> "wr.P":
    """Run ids in it lead to the runs."""
    import wandb_workspaces.reports.v2 as wr

    shown = {
        "text": str,
        "code": wr.InlineCode,
        "run": lambda run_id: wr.Link(text=run_id, url=f"{found.address}/runs/{run_id}"),
    }
    told = text.pieces(sentence, [run.run_id for run in found.runs])
    return wr.P([shown[kind](piece) for piece, kind in told])


def again(findings: Findings, command: str) -> list:
    import wandb_workspaces.reports.v2 as wr

    from report_best import command_of

    blocks = []
    if findings.best:
        blocks += [wr.P("The best run, with every key that is not the default:")]
        blocks += [wr.CodeBlock(command_of(findings.best.run))]
    return [*blocks, wr.P("This report:"), wr.CodeBlock(command)]


def run_set(found: Found, findings: Findings) -> "wr.Runset":
    """The sweep's runs, or those that trained; the best one first."""
    import wandb_workspaces.reports.v2 as wr

    score, _ = score_of(findings)
    return wr.Runset(
        entity=found.place.entity,
        project=found.place.project,
        name=found.name,
        filters=filters_of(found),
        order=[wr.OrderBy(wr.SummaryMetric(score), ascending=findings.goal == "minimize")],
        pinned_columns=columns_of(found, findings),
    )


def filters_of(found: Found) -> list:
    import wandb_workspaces.workspaces as ws

    names = {"sweep": "Sweep", "jobType": "JobType"}
    return [ws.Metric(names[key]) == value for key, value in found.place.filters.items()]


def columns_of(found: Found, findings: Findings) -> list[str]:
    """Of the table of runs."""
    score, _ = score_of(findings)
    keys = (key for key, _ in parameters(findings, found.searched))
    return ["run:displayName", f"summary:{score}", *(f"config:{key}.value" for key in keys)]


def score_of(findings: Findings) -> tuple[str, str]:
    """What a run is worth: its key in W&B's summary, and in words. There a metric has its last
    value; of the accuracy the best one is there as well.
    """
    if (findings.metric, findings.goal) == (ACCURACY, "maximize"):
        return "best_val_acc", "best validation accuracy"
    return findings.metric, f"{name_of(findings.metric)}, last epoch"


def parameters(findings: Findings, searched: Sequence[str]) -> list[tuple[str, bool]]:
    """Those that the sweep draws, else those by which the runs differ; whether logarithmic."""
    from report_sections import MOST_PARAMETERS

    found = {one.key: one.kind == "log" for one in scales(findings)}
    found.update((key, True) for key in findings.logarithmic)
    keys = searched or findings.searched
    return [(key, found.get(key, False)) for key in keys[:MOST_PARAMETERS]]


def chapters(findings: Findings, searched: Sequence[str]) -> list[Chapter]:
    """The panels, with what there is to say beside them."""
    import wandb_workspaces.reports.v2 as wr

    found = [
        Chapter("Learning curves", text.curves(findings), curves(findings)),
        Chapter(
            "What it gets wrong",
            ["Grad-CAM after every epoch for the same validation images; the mistakes of each "
             "run's best weights with the maps of the predicted and of the true class."],
            [[wr.MediaBrowser(title="Grad-CAM", media_keys=["val/gradcam"], num_columns=2)],
             [wr.WeavePanelSummaryTable(table_name="val/mistakes")]],
        ),
    ]  # fmt: skip
    drawn = parameters(findings, searched)
    if drawn:
        rows = parameter_rows(findings, drawn)
        found.insert(0, Chapter("What made the difference", text.search(findings), rows))
    if any(LIFTS[0] in row for entry in findings.entries for row in entry.run.rows):
        rows = [[line(LIFTS[0], "energy inside the box, above a uniform map"),
                 line(LIFTS[1], "peak inside the box, above the image's centre")]]  # fmt: skip
        found.append(Chapter("Did it look at the object?", text.localisation(findings), rows))
    return found


def parameter_rows(findings: Findings, drawn: Sequence[tuple[str, bool]]) -> list[list]:
    """Parallel coordinates, importance, and the score over each parameter."""
    import wandb_workspaces.reports.v2 as wr

    key, name = score_of(findings)
    columns = [
        wr.ParallelCoordinatesPlotColumn(wr.Config(one), log=log or None) for one, log in drawn
    ]
    columns.append(wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(key), display_name=name))
    over = [
        wr.ScatterPlot(
            title=f"{name} over {one}",
            x=wr.Config(one),
            y=wr.SummaryMetric(key),
            log_x=log or None,
        )
        for one, log in drawn
    ]
    rows = [[wr.ParallelCoordinatesPlot(columns=columns, title=f"from parameters to {name}")]]
    rows += [[wr.ParameterImportancePlot(with_respect_to=key)]]
    return rows + [over[i : i + 2] for i in range(0, len(over), 2)]


def curves(findings: Findings) -> list[list]:
    keys = [key for key in dict.fromkeys([findings.metric, *CURVES]) if key in METRICS]
    lines = [line(key, METRIC_NAMES.get(key, key)) for key in keys]
    return [lines[i : i + 2] for i in range(0, len(lines), 2)]


def line(key: str, title: str) -> "wr.LinePlot":
    import wandb_workspaces.reports.v2 as wr

    return wr.LinePlot(title=title, x="epoch", y=[key], max_runs_to_show=MOST_LINES)


def laid_out(rows: Sequence[Sequence[Any]]) -> list:
    """The panels, each row of them across the page."""
    import wandb_workspaces.reports.v2 as wr

    for y, row in enumerate(rows):
        wide = COLUMNS // len(row)
        for x, panel in enumerate(row):
            panel.layout = wr.Layout(x=x * wide, y=y * HEIGHT, w=wide, h=HEIGHT)
    return [panel for row in rows for panel in row]


def workspace_of(found: Found):
    import wandb_workspaces.workspaces as ws

    findings = Findings.of(found.runs, found.studies)
    score, _ = score_of(findings)
    order = ws.Ordering(ws.Summary(score), ascending=findings.goal == "minimize")
    return ws.Workspace(
        entity=found.place.entity,
        project=found.place.project,
        name=without_symbols(title_of(found)),
        sections=[
            ws.Section(name=one.title, panels=one.panels, is_open=True)
            for one in chapters(findings, found.searched)
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=MOST_LINES),
        runset_settings=ws.RunsetSettings(
            filters=filters_of(found), order=[order], pinned_columns=columns_of(found, findings)
        ),
    )


def without_symbols(name: str) -> str:
    """The client refuses emojis in a view's name, and takes `+` and `=` for such."""
    return "".join("-" if unicodedata.category(c)[0] in "SC" else c for c in name)
