"""Every adapter keeps the contract on a small data set in its official layout (see tests/adapter_root.py)."""

import codecs
import gzip
import importlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image as Picture

import adapter_root
from medmvl.core.boxes import BoxFormat
from medmvl.core.schema import Image, Sample, SampleError, Text, split_fragment
from medmvl.data.adapters.base import Adapter, LayoutError
from medmvl.data.adapters.table import ADAPTERS, adapter

TABLES = (".csv", ".tsv", ".json", ".jsonl")


def _written(name: str) -> bool:
    """Whether the row's module exists; the last test asks for all."""
    try:
        importlib.import_module(ADAPTERS[name].partition(":")[0])
    except ModuleNotFoundError:
        return False
    return True


NAMES = [name for name in ADAPTERS if _written(name)]


class Read:
    """A root, and everything its adapter yields."""

    def __init__(self, name: str, root: adapter_root.Root, media: Path) -> None:
        self.root, self.media = root, media
        self.adapter = self._new(name)
        self.yielded = {split: list(self.adapter.samples(split, list(self.adapter.tasks))) for split in self.splits}

    def _new(self, name: str) -> Adapter:
        return adapter(name)(self.root.path, self.root.options, self._unpack)

    def _unpack(self, name: str, content: bytes) -> str:
        path = self.media / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path)

    @property
    def splits(self) -> list[str]:
        return list(self.adapter.splits)

    @property
    def samples(self) -> list[Sample]:
        return [one for split in self.splits for one in self.yielded[split] if isinstance(one, Sample)]

    def refused(self, split: str) -> list[SampleError]:
        return [one for one in self.yielded[split] if isinstance(one, SampleError)]

    def plain(self) -> list[str]:
        """Return the samples as text that does not depend on where the root lies."""
        folders = (str(self.adapter.root), str(self.media))
        lines = [json.dumps(sample.to_dict(), ensure_ascii=False) for sample in self.samples]
        for folder in folders:
            lines = [line.replace(folder, "") for line in lines]
        return [line.replace("\\r\\n", "\\n") for line in lines]


@pytest.fixture(scope="module")
def read(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    root = adapter_root.build(request.param, folder / "root")
    return Read(request.param, root, folder / "media")


every = pytest.mark.parametrize("read", NAMES, indirect=True)
by_name = pytest.mark.parametrize("name", NAMES)


@by_name
def test_says_what_it_is(name: str) -> None:
    kind = adapter(name)
    for field in ("name", "title", "version", "licence", "access", "layout"):
        assert getattr(kind, field).strip(), f"{name} has no {field}"
    assert kind.tasks and all(line.strip() for line in kind.tasks.values())
    assert set(kind.splits) <= {"train", "val", "test"}
    assert all(field.description for field in kind.Options.model_fields.values()), "an option is not described"


@every
def test_counts(read: Read) -> None:
    counts = Counter((sample.split, sample.task) for sample in read.samples)
    assert dict(counts) == dict(read.root.counts)
    told = {split: len(read.refused(split)) for split in read.splits if read.refused(split)}
    assert told == dict(read.root.refused), [str(error) for split in read.splits for error in read.refused(split)]


@every
def test_samples_keep_to_their_split_source_and_tasks(read: Read) -> None:
    for split in read.splits:
        for sample in read.yielded[split]:
            if isinstance(sample, Sample):
                assert (sample.split, sample.source) == (split, read.adapter.name)
                name, _, task = sample.task.partition("/")
                assert name == read.adapter.name and task in read.adapter.tasks


@every
def test_ids_are_unique_over_all_splits(read: Read) -> None:
    twice = [key for key, count in Counter(sample.id for sample in read.samples).items() if count > 1]
    assert not twice


@every
def test_media_are_parts_and_lie_under_the_root(read: Read) -> None:
    allowed = (read.adapter.root, read.media)
    for sample in read.samples:
        texts = [part.text for message in sample.messages for part in message.content if isinstance(part, Text)]
        assert not any("<image" in text for text in texts), f"{sample.id}: a placeholder was left in the text"
        for path in sample.media_key:
            file = Path(split_fragment(path)[0])
            assert any(file.is_relative_to(folder) for folder in allowed), path
            assert file.exists(), path


@every
def test_says_something(read: Read) -> None:
    for sample in read.samples:
        assert [message.role for message in sample.messages][-1] == "assistant", sample.id
        assert all(message.content for message in sample.messages), sample.id
        words = [part for message in sample.messages for part in message.content if isinstance(part, Text)]
        assert all(part.text.strip() for part in words), f"{sample.id} says nothing somewhere"


@every
def test_samples_and_boxes_come_back_as_they_were(read: Read) -> None:
    for sample in read.samples:
        assert Sample.from_dict(json.loads(json.dumps(sample.to_dict()))) == sample
        for box in sample.meta.boxes:
            medium = sample.media[box.media]
            half = len(box.coords) // 2
            assert all(high > low >= 0 for low, high in zip(box.coords[:half], box.coords[half:], strict=True))
            size = tuple(edge + 3 for edge in box.coords[half:])
            if isinstance(medium, Image) and medium.path.lower().endswith((".png", ".jpg", ".jpeg")):
                with Picture.open(medium.path) as picture:
                    size = picture.size
                assert all(edge <= extent for edge, extent in zip(box.coords[half:], size, strict=True)), sample.id
            for scale in (100, 1000):
                (found,) = BoxFormat(scale).parse_boxes(BoxFormat(scale).format_box(box.coords, size), size)
                assert found == pytest.approx(box.coords, abs=max(size) / scale)


@every
def test_reading_again_gives_the_same(read: Read) -> None:
    for split in read.splits:
        again = [one for one in read.adapter.samples(split, list(read.adapter.tasks)) if isinstance(one, Sample)]
        assert again == [one for one in read.yielded[split] if isinstance(one, Sample)]


@every
def test_one_task_alone_is_the_same_part(read: Read) -> None:
    for task in read.adapter.tasks:
        wanted = [sample for sample in read.samples if sample.task == f"{read.adapter.name}/{task}"]
        found = [one for split in read.splits for one in read.adapter.samples(split, [task]) if isinstance(one, Sample)]
        assert found == wanted, task


@every
def test_bad_rows_are_refused_alone_and_with_their_place(read: Read) -> None:
    refused = [error for split in read.splits for error in read.refused(split)]
    if read.root.spotless:
        return
    assert refused, "the fixture plants no bad row"
    assert all(error.path for error in refused), "a refusal does not say where"
    leaving = [error for error in refused if "leaves" in error.message]
    assert bool(leaving) == read.root.names_paths, "plant one path that leaves the root, where annotations name files"
    assert not any("outside" in path for sample in read.samples for path in sample.media_key)


@by_name
def test_wrong_root_says_what_was_expected(name: str, tmp_path: Path) -> None:
    (tmp_path / "holiday.txt").write_text("no data set")
    kind = adapter(name)
    with pytest.raises(LayoutError) as error:
        reader = kind(tmp_path)
        for split in reader.splits:
            list(reader.samples(split, list(reader.tasks)))
    told = str(error.value)
    assert "missing" in told and "holiday.txt" in told and kind.layout.strip() in told
    with pytest.raises(LayoutError, match="no such folder"):
        kind(tmp_path / "nowhere")


@every
def test_unknown_options_are_refused_with_the_known(read: Read) -> None:
    kind = type(read.adapter)
    with pytest.raises(ValueError, match="no_such_option") as error:
        kind(read.root.path, {**read.root.options, "no_such_option": 1})
    assert all(known in str(error.value) for known in kind.Options.model_fields)


@by_name
def test_byte_order_marks_and_windows_line_ends_change_nothing(name: str, tmp_path: Path) -> None:
    plain, marked = tmp_path / "plain" / "root", tmp_path / "marked" / "root"
    root = adapter_root.build(name, plain)
    shutil.copytree(plain, marked)
    for path in marked.rglob("*"):
        if path.is_file() and path.name.removesuffix(".gz").endswith(TABLES):
            _mark(path)
    moved = Path(str(root.path).replace(str(plain), str(marked)))
    twin = adapter_root.Root(moved, root.counts, options=root.options)
    assert Read(name, twin, tmp_path / "media").plain() == Read(name, root, tmp_path / "media").plain()


def _mark(path: Path) -> None:
    packed = path.suffix == ".gz"
    content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    content = codecs.BOM_UTF8 + content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    path.write_bytes(gzip.compress(content) if packed else content)


ODD = (None, 7, [3], [["x"]], {"a": 1}, True, "", "\ud800")


@by_name
def test_a_field_of_another_kind_costs_its_row_only(name: str, tmp_path: Path) -> None:
    root = adapter_root.build(name, tmp_path / "root")
    before = Read(name, root, tmp_path / "media")
    folder = root.path if root.path.is_dir() else root.path.parent
    for path in sorted(folder.rglob("*.json*")):
        rows, write = _rows(path)
        for field in list(rows[0]) if rows else ():
            for odd in ODD:
                write([{**rows[0], field: odd}, *rows[1:]])
                found = Read(name, root, tmp_path / "media")
                lost = len(before.samples) - len(found.samples)
                assert lost <= _most_of_a_row(before), f"{path.name}: {field} = {odd!r} costs {lost} samples"
        if rows:
            write(rows)


def _rows(path: Path) -> tuple[list[dict], Callable[[list[dict]], None]]:
    """Return the objects of a JSON list or JSONL, [] for any other file, and what writes them back."""
    lines = path.suffix == ".jsonl"
    text = path.read_text("utf-8")
    rows = [json.loads(line) for line in text.splitlines() if line] if lines else json.loads(text)
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
        rows = []

    def write(changed: list[dict]) -> None:
        path.write_text("\n".join(map(json.dumps, changed)) if lines else json.dumps(changed))

    return rows, write


def _most_of_a_row(read: Read) -> int:
    """Return how many samples one row may stand for: those of one image, or one of each task."""
    of_images = Counter(sample.media_key for sample in read.samples if sample.media_key)
    return max(len(read.adapter.tasks), *of_images.values(), 0)


def test_every_row_of_the_table_is_covered() -> None:
    missing = [name for name in ADAPTERS if name not in NAMES]
    assert not missing, f"no module yet: {', '.join(missing)}"
