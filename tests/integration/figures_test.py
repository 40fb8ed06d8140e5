# SPDX-License-Identifier: MIT
"""scripts/figures.py: the tables of the pages are what the results say, and the pages show what the checked-in results give."""

import copy
import json
import re
import sys

import pytest

from harness import REPO

sys.path.append(str(REPO / "scripts"))
sys.path.append(str(REPO / "tests" / "bench"))

import figures  # noqa: E402
import plots  # noqa: E402

pytestmark = pytest.mark.no_ring

RECORDS = [
    {"server": "nginx", "client": "curl", "preloaded": "both", "verdict": "ring"},
    {"server": "nginx", "client": "curl", "preloaded": "client", "verdict": "TCP (peer-absent)"},
    {"server": "nginx", "client": "Go", "preloaded": "both", "verdict": "TCP (peer-absent)"},
    {"server": "nginx", "client": "node", "preloaded": "both", "verdict": "ring"},
    {"server": "nginx → app", "client": "curl", "preloaded": "both", "verdict": "ring", "behind": "TCP (short-lived)"},
]


def junit(records, failed=False):
    value = lambda record: json.dumps(record).replace("&", "&amp;").replace('"', "&quot;")
    cases = [f'<testcase name="t"><properties><property name="service" value="{value(r)}"/></properties></testcase>' for r in records]
    return f"<testsuites><testsuite>{''.join(cases)}{'<testcase><failure/></testcase>' if failed else ''}</testsuite></testsuites>"


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """A copy of the pages, which figures.py writes into."""
    (tmp_path / "deploy").mkdir()
    for name in ("README.md", "deploy/SERVICES.md"):
        (tmp_path / name).write_text((REPO / name).read_text())
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "RECORD", tmp_path / "deploy" / "services.json")
    return tmp_path


# ---- the pages as they are ---------------------------------------------------------------------------------------------------


def test_the_readme_shows_the_checked_in_result():
    result = json.loads((REPO / "deploy" / "services.json").read_text())
    readme = (REPO / "README.md").read_text()
    assert figures.replace_between(readme, "compatibility", figures.compatibility_text(result)) == readme


def test_links_of_the_pages_lead_somewhere():
    for page in ("README.md", "deploy/SERVICES.md", "preload/ARCHITECTURE.md", ".github/CONTRIBUTING.md", "deploy/CHANGELOG.md"):
        path = REPO / page
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{page}: {target}"


def test_the_drawing_of_a_channel_has_the_offsets_of_the_layout():
    layout = (REPO / "shm" / "layout.h").read_text()
    drawn = dict(re.findall(r"^    (\d+) +(\w+)", (REPO / "preload" / "ARCHITECTURE.md").read_text(), re.M))
    for name, word in (("accept_state", "accept_state"), ("waiters", "waiters"), ("direction", "producer")):
        offset = re.search(rf"offsetof\(ChannelHeader, {name}\) == (\d+)", layout)[1]
        assert drawn[offset] == word
    assert re.search(r"sizeof\(ChannelHeader\) == 512", layout) and drawn["512"] == "ring"


# ---- compatibility -----------------------------------------------------------------------------------------------------------


def test_table_of_compatibility():
    rows = figures.compatibility_table(RECORDS).splitlines()[2:]
    assert rows == [
        "| nginx | curl, node | Go: TCP (peer-absent) | TCP (peer-absent) |",
        "| nginx → app | curl | nginx to app: TCP (short-lived) | – |",
    ]


def test_a_result_is_kept_and_shown(pages):
    (pages / "results.xml").write_text(junit(reversed(RECORDS)))
    figures.write_compatibility(pages / "results.xml")
    assert json.loads((pages / "deploy" / "services.json").read_text())["records"] == RECORDS
    assert "| nginx | curl, node | Go: TCP (peer-absent) |" in (pages / "README.md").read_text()


@pytest.mark.parametrize("text", [junit(RECORDS, failed=True), junit([])], ids=["failed", "empty"])
def test_nothing_is_written_of_a_run_that_failed(pages, text):
    before = (pages / "README.md").read_text()
    (pages / "results.xml").write_text(text)
    with pytest.raises(figures.Wrong):
        figures.write_compatibility(pages / "results.xml")
    assert (pages / "README.md").read_text() == before and not (pages / "deploy" / "services.json").exists()


@pytest.mark.parametrize("text", ["nothing", "<!-- x: made by scripts/figures.py -->", "<!-- end of x -->"])
def test_markers_must_be_there(text):
    with pytest.raises(figures.Wrong):
        figures.replace_between(text, "x", "body")


# ---- measurements ------------------------------------------------------------------------------------------------------------


def mode(rate, p50):
    return {"rate": {"median": rate}, "latency_us": {"p50": p50}, "runs": []}


REPORT = {
    "complete": True, "problems": [], "options": {"guards": "pkey", "rounds": 5, "seconds": 2.0},
    "environment": {"machine": {"cpu": "a CPU", "usable_cpus": 2, "kernel": "6.1"}, "run": {"load_before": [0.1]}},
    "cells": [
        {"suite": "paper", "name": f"paper/{kind}, {size}", "modes": {"tcp": mode(1000, 900), "mpklink": mode(12_000, 80), **unix},
         "ratios": {"mpklink": {"of_medians": 12, "lowest": 11, "highest": 13}}}
        for kind, size, unix in (("REST", "100 B", {"unix": {"not_applicable": "wrk speaks TCP only"}}), ("gRPC", "1 MB", {"unix": mode(1100, 1200)}))
    ],
}  # fmt: skip


def test_the_paper_is_shown_with_its_plot(pages):
    (pages / "results.json").write_text(json.dumps(REPORT))
    (pages / "paper.svg").write_text("<svg/>")
    figures.write_paper(pages / "results.json")
    text = (pages / "README.md").read_text()
    assert "| REST, 100 B | 1,000, 900 µs | – | 12,000, 80 µs | 12.00 (11.00–13.00) |" in text
    assert "| gRPC, 1 MB | 1,000, 900 µs | 1,100, 1.2 ms | 12,000, 80 µs |" in text
    assert "deploy/paper.svg" in text and (pages / "deploy" / "paper.svg").exists() and "No figures yet" not in text


def test_what_services_gain_is_shown(pages):
    report = copy.deepcopy(REPORT)
    for cell in report["cells"]:
        cell.update(suite="services", name="services/wrk → node")
    (pages / "results.json").write_text(json.dumps(report))
    figures.write_services(pages / "results.json")
    assert "| wrk → node | 1,000 | 12,000 | 12.00 (11.00–13.00) | 900 µs | 80 µs |" in (pages / "deploy" / "SERVICES.md").read_text()


@pytest.mark.parametrize("change", [{"complete": False}, {"problems": [{"text": "FALSE GREEN"}]}, {"cells": []}], ids=lambda c: next(iter(c)))
def test_figures_of_a_bad_run_are_not_shown(pages, change):
    (pages / "results.json").write_text(json.dumps({**REPORT, **change}))
    with pytest.raises(figures.Wrong):
        figures.measured(pages / "results.json", "paper")


def test_plot_of_the_paper():
    script = "\n".join(plots.paper_script(REPORT["cells"]).lines)
    assert '"REST, mpklink"' in script and '"gRPC, unix"' in script and '"REST, unix"' not in script
    assert "100 12000" in script and "1000000 80" in script
