"""The models' own words in a report: side by side, short, and never taken for markup."""

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from study_builder import build_study

from hybrid_ray.report.load import load_study
from hybrid_ray.report.study_page import write_report
from hybrid_ray.report.text_samples import LONGEST, Sample, samples
from hybrid_ray.run_result import RunResult
from hybrid_ray.storage.json_files import read_json, write_json_atomic

EVIL = "<script>alert(1)</script>\n```\n# a heading & <img src=x onerror=y>\x00\x1b[31m"


def write(directory: Path, run: str, text: str | None) -> None:
    path = directory / run / "result.json"
    write_json_atomic(path, replace(RunResult.from_dict(read_json(path)), sample=text).as_dict())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_study(tmp_path_factory.mktemp("samples") / "study", confirm=False)


def best_of(directory: Path) -> int:
    best = load_study(directory).best
    assert best is not None
    return int(best["number"])


class Page(HTMLParser):
    """What a reader sees of each <pre>, and the tags that a browser would act on."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.quoted: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag == "pre":
            self.quoted.append("")

    def handle_data(self, data: str) -> None:
        if self.quoted:
            self.quoted[-1] += data


def test_a_text_with_markup_in_it_is_shown_and_does_nothing(study: Path) -> None:
    best = best_of(study)
    write(study, "baseline", "def plain():\n    return 1\n")
    write(study, f"trials/{best:04d}", EVIL)
    write_report(study)
    page = Page((study / "report.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert page.quoted[0].startswith("def plain():\n    return 1\n")
    assert page.quoted[1].startswith("<script>alert(1)</script>\n```\n# a heading & <img")
    assert not {"\x00", "\x1b"} & set((study / "report.html").read_text(encoding="utf-8"))
    lines = (study / "report.md").read_text(encoding="utf-8").splitlines()
    place = lines.index("    <script>alert(1)</script>")  # an indented block: no tag, no fence, no heading
    assert lines[place + 1 : place + 3] == ["    ```", "    # a heading & <img src=x onerror=y>\ufffd\ufffd[31m"]
    assert f"### trial {best} (best)" in lines


def test_baseline_and_best_trial_side_by_side_and_short(study: Path) -> None:
    best = best_of(study)
    write(study, "baseline", "x" * 5000)
    write(study, f"trials/{best:04d}", "short")
    first, second = samples(load_study(study))
    assert (first.name, second.name) == ("baseline", f"trial {best} (best)")
    assert first.text == "x" * LONGEST + " ..."
    assert second.text == "short"


def test_a_study_without_text_has_no_such_section(study: Path) -> None:
    write(study, "baseline", None)
    write(study, f"trials/{best_of(study):04d}", None)
    assert samples(load_study(study)) == []


def test_every_line_of_a_text_is_kept_in_markdown() -> None:
    assert Sample(name="baseline", text="a\n\n  b").indented == "    a\n    \n      b"
