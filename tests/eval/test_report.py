"""The report: one file, nothing loaded from elsewhere, nothing executed that data or models wrote."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from medmvl.eval.report import write_report
from medmvl.eval.run import evaluate
from paper_model import PaperModel, write_store

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&{{7*7}}"


class Tags(HTMLParser):
    """Collects tags, their attributes and the ids of what is on the page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.data.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    samples = write_store(root / "brain_atlas")
    model = PaperModel(samples, errs=0.3, broken=[samples[0].id])
    honest = model.generate

    def generate(samples, **options):  # type: ignore[no-untyped-def]
        return [EVIL if s.task.endswith(("reg", "rec")) and i % 2 else text
                for i, (s, text) in enumerate(zip(samples, honest(samples, **options), strict=True))]  # fmt: skip

    model.generate = generate  # type: ignore[method-assign]
    log = root / "log.jsonl"
    rows = [{"stage": f"align {EVIL}", "step": i, "loss": 3 / (1 + i)} for i in range(50)]
    rows += [{"kind": "validation", "stage": f"align {EVIL}", "step": i, "loss": 1.5} for i in (25, 49)]
    rows.append({"kind": "note", "stage": "align", "text": "no loss here"})
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = root / "out"
    tasks = [f"brain_atlas/{family}" for family in ("side", "choice", "report", "rec", "reg")]
    evaluate(model, tasks, out, roots=[root], resamples=20, logs=[log])
    return out


def parsed(folder: Path) -> tuple[str, Tags]:
    text = (folder / "report.html").read_text()
    page = Tags()
    page.feed(text)
    return text, page


def test_text_of_models_is_text(folder: Path) -> None:
    text, page = parsed(folder)
    assert EVIL in "".join(page.data)  # shown as written
    assert "<script>alert" not in text
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(tag == "img" for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_nothing_is_loaded_from_elsewhere(folder: Path) -> None:
    text, page = parsed(folder)
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", text)
    assert not any(tag in ("link", "iframe", "object") for tag, _ in page.tags)
    policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    assert policy and "default-src 'none'" in policy and "'sha256-" in policy
    links = [attributes["href"] for tag, attributes in page.tags if tag == "image"]
    assert links and all(link and link.startswith("data:image/webp;base64,") for link in links)


def test_everything_is_shown(folder: Path) -> None:
    text, page = parsed(folder)
    for heading in (
        "Scores and controls",
        "Which answers are confused",
        "How it was trained",
        "Right and wrong answers",
    ):
        assert heading in text
    classes = [attributes.get("class") or "" for tag, attributes in page.tags if tag == "rect"]
    for kind in ("box-asked", "box-true", "box-predicted"):
        assert classes.count(kind) > 1, kind  # drawn, beside the legend
    outcomes = {attributes.get("data-outcome") for tag, attributes in page.tags if tag == "article"}
    assert outcomes == {"right", "partly", "wrong"}
    assert "Questions that could not be asked: 1" in text
    assert [a.get("class") for tag, a in page.tags if tag == "polyline"] == ["raw", None, "validation"]
    assert "(1.500)" in text
    assert len(text) < 3_000_000


def test_written_again_it_is_the_same_and_pictures_may_be_gone(folder: Path) -> None:
    first = (folder / "report.html").read_text()
    without_curves = write_report(folder).read_text()
    assert write_report(folder).read_text() == without_curves
    assert len(without_curves) < len(first)
    for path in (folder.parent / "brain_atlas" / "images").iterdir():
        path.unlink()
    assert re.search(r'class="none">[^<]*\.png: does not exist', write_report(folder).read_text())


def test_a_broken_log_is_named(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"loss": 1}\n{"loss": \n')
    with pytest.raises(ValueError, match=r"log\.jsonl:2: not valid JSON"):
        write_report(folder, [log])
