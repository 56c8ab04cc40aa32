"""Counts the faults that the tests cause on purpose, over all processes of pytest, and prints the
totals: caused, survived, lost.

    @pytest.mark.fault("data: a bad image")     each case of this test is one fault
    with fault("kill -9, training"): ...        one fault: to be survived up to the end of the block
"""

from collections import Counter
from contextlib import contextmanager

import pytest

CAUSED, SURVIVED = "fault caused", "fault survived"


def pytest_configure(config):
    config.addinivalue_line("markers", "fault(kind): this test causes a fault; it is counted")


@pytest.fixture
def fault(request):
    @contextmanager
    def cause(kind: str, count: int = 1):
        request.node.user_properties.append((CAUSED, (kind, count)))
        yield
        request.node.user_properties.append((SURVIVED, (kind, count)))

    return cause


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    mark = item.get_closest_marker("fault")
    if mark and call.when == "call" and not report.skipped:
        report.user_properties.append((CAUSED, (mark.args[0], 1)))
        if report.passed:
            report.user_properties.append((SURVIVED, (mark.args[0], 1)))
    return report


def pytest_terminal_summary(terminalreporter):
    counts = {CAUSED: Counter(), SURVIVED: Counter()}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            for name, value in report.user_properties if report.when == "call" else ():
                if name in counts:
                    kind, count = value
                    counts[name][kind] += count
    if not counts[CAUSED]:
        return
    terminalreporter.section("faults caused on purpose")
    rows = [(kind, count, counts[SURVIVED][kind]) for kind, count in sorted(counts[CAUSED].items())]
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    width = max(len(row[0]) for row in rows)
    terminalreporter.write_line(f"{'':{width}}  caused  survived  lost")
    for kind, caused, survived in rows:
        terminalreporter.write_line(
            f"{kind:{width}}  {caused:6d}  {survived:8d}  {caused - survived:4d}"
        )
