"""Fixtures shared by all rooms, and the count of the tests that ran on real data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
_SHARED = "uses-shared-data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real test data that stands beside a development checkout; tests that need it skip without it."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the shared test data (../shared/data), which is not beside this checkout")
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):
    """Mark the reports of tests that use the shared data, so that the summary can count them."""
    report = yield
    if "shared_data" in getattr(item, "fixturenames", ()):
        report.user_properties.append((_SHARED, True))
    return report


def _with_shared_data(reports: list[pytest.TestReport]) -> int:
    return sum((_SHARED, True) in getattr(report, "user_properties", []) for report in reports)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests ran on the shared data and how many skipped for want of it."""
    stats = terminalreporter.stats
    ran = _with_shared_data([r for r in stats.get("passed", []) + stats.get("failed", []) if r.when == "call"])
    skipped = _with_shared_data(stats.get("skipped", []))
    terminalreporter.write_line(f"tests on the shared data: {ran} ran, {skipped} skipped")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a CI run that stands beside the shared data and ran no test on it."""
    if os.environ.get("FORETHOUGHT_EXPECT_SHARED") != "1" or hasattr(session.config, "workerinput"):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    done = [] if reporter is None else reporter.stats.get("passed", [])
    if not _with_shared_data([report for report in done if report.when == "call"]) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
