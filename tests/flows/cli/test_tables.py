"""What the stage commands print when they are done."""

from pathlib import Path

import pytest

from latebloom.flows.cli.tables import print_report
from latebloom.flows.report.page import write_report
from latebloom.flows.report.results import Report
from latebloom.flows.report.table import report_table
from tests.flows.report.test_page import NOTHING, arm, report


def test_no_cell_of_the_table_is_cut_off_on_a_narrow_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    name = "ours-5+contextual_diversity"
    values: Report = report(arms=(arm("original"), arm(name)))
    write_report(tmp_path, values, NOTHING)
    print_report(tmp_path, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if "…" in line]
    row = next(line for line in lines if line.startswith(name))
    assert all(cell in row for cell in report_table(values)[2])
