"""A pytest plugin: one line for each test file as its last test ends, also with workers."""

from collections import defaultdict

import pytest


class FileProgress:
    """Counts the tests of each file; `write` prints a line."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.left = dict[str, int]()
        self.seconds = defaultdict[str, float](float)
        self.failed = defaultdict[str, int](int)
        self.tests = defaultdict[str, int](int)

    def collected(self, ids: list[str]) -> None:
        """Every worker collects all tests: the first one's are taken."""
        if self.left:
            return
        for name in ids:
            file = name.split("::")[0]
            self.left[file] = self.left.get(file, 0) + 1
        self.tests.update(self.left)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.collected([item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self.collected(ids)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = report.nodeid.split("::")[0]
        self.seconds[file] += report.duration
        self.failed[file] += report.failed
        if report.when == "teardown":
            self.left[file] -= 1
            if not self.left[file]:
                self.write(file)

    def write(self, file: str) -> None:
        ended = len(self.left) - sum(1 for count in self.left.values() if count)
        word = f"{self.failed[file]} FAILED" if self.failed[file] else "passed"
        line = f"[{ended}/{len(self.left)}] {file}: {self.tests[file]} {word}, {self.seconds[file]:.1f} s"
        reporter = self.config.pluginmanager.get_plugin("terminalreporter")
        reporter.ensure_newline()
        reporter.write_line(line, red=bool(self.failed[file]))

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        """No letter for what passed: its file has a line."""
        return ("passed", "", "PASSED") if report.passed and report.when == "call" else None
