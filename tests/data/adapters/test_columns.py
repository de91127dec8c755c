"""Tables of your own: which column says what, and what is told when one is not there."""

import pytest

from adapter_root import build
from medmvl.core.schema import BoxRef, Image, Sample, SampleError, Text, Volume
from medmvl.data.adapters.base import LayoutError
from medmvl.data.adapters.columns import Columns
from medmvl.data.rows import TableError


class Unpacked(dict):
    def __call__(self, name, content):
        assert self.setdefault(name, content) == content
        return f"/media/{name}"


def read(path, of="train", unpack=None, **options):
    return list(Columns(path, options, unpack).samples(of, ["qa"]))


def table(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_columns_become_the_parts_of_samples(tmp_path):
    root = build("table", tmp_path / "root")
    found = {split: read(root.path, split, **root.options) for split in ("train", "val", "test")}
    first, second, third = (found[split][0] for split in ("train", "val", "test"))
    pictures = root.path.parent / "pictures"
    assert (first.id, first.meta.patient, first.answer) == ("r1", "p1", "A CT.")
    assert second.media_key == (str(pictures / "a.png"), str(pictures / "b.png"))
    assert second.meta.choices == ("yes", "no") and second.messages[0].content[-1].text == "Same, or\nnot?"
    assert third.messages[0].content[1:] == (Text(text="Where is "), BoxRef(box=0), Text(text="?"))
    assert third.meta.boxes[0].coords == (1, 2, 5, 6)
    wrong = [one for split in found.values() for one in split if isinstance(one, SampleError)]
    assert [error.path for error in wrong] == [f"mine.csv:{line}" for line in (6, 7, 9, 10, 8)]
    told = ("'image' is empty", "'answer' is empty", "'holdout' is unknown", "lower corner", "leaves")
    assert all(words in error.message for words, error in zip(told, wrong, strict=True))


def test_columns_called_as_their_options_need_no_naming(tmp_path):
    path = table(tmp_path / "val.tsv", "volume\tquestion\tanswer\ttask", "ct#series=2\tHow many?\t2\tcount")
    (sample,) = read(path, "val")
    assert sample.media == (Volume(path=str(tmp_path / "ct#series=2")),) and sample.task == "table/count"
    assert (sample.id, sample.split, read(path)) == ("val/val.tsv:2", "val", [])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, ["answer: say which column holds it"]),
        ({"question": " question", "answer": "reply"}, ["no column ' question'; write question=Question"]),
        ({"question": "questoin", "answer": "reply"}, ["no column 'questoin'; did you mean 'Question'?"]),
        ({"ask": "In the {regoin}?", "answer": "reply"}, ["ask, {regoin}: there is no column 'regoin'; did you mean"]),
        ({"image": "file"}, ["answer=COLUMN (or boxes=COLUMN)", "columns: file, Question, reply, region"]),
    ],
)
def test_options_that_fit_no_column_say_which_there_are(tmp_path, options, told):
    path = table(tmp_path / "x.csv", "file,Question,reply,region", "a.png,What?,this,lung")
    with pytest.raises(TableError) as error:
        read(path, **options)
    assert all(words in str(error.value) for words in told)


def test_columns_called_as_their_options_in_another_case_need_no_naming(tmp_path):
    path = table(tmp_path / "x.csv", " Image ,QUESTION,Answer,Patient", "a.png,What?,This.,p1")
    (sample,) = read(path)
    assert sample.media_key == (str(tmp_path / "a.png"),) and sample.meta.patient == "p1"
    path = table(tmp_path / "x.csv", "Image,IMAGE,question,answer", "a.png,b.png,What?,This.")
    assert read(path)[0].media == () and read(path, image="IMAGE")[0].media_key == (str(tmp_path / "b.png"),)


@pytest.mark.parametrize("row", ["a.png;What, please?;This, that.", "a.png;What?;This."])
def test_another_separator_is_told_and_can_be_given(tmp_path, row):
    path = table(tmp_path / "x.csv", "image;question;answer", row)
    with pytest.raises(TableError, match="the separator looks like ';': add delimiter=';'"):
        read(path)
    (sample,) = read(path, delimiter=";")
    assert sample.media_key == (str(tmp_path / "a.png"),) and sample.answer.startswith("This")
    with pytest.raises(ValueError, match="delimiter"):
        Columns(path, {"delimiter": "semicolon"})


def test_a_table_without_rows_is_told(tmp_path, caplog):
    with caplog.at_level("WARNING"):
        assert read(table(tmp_path / "x.csv", "image,question,answer")) == []
    assert f"{tmp_path / 'x.csv'}: holds no rows" in caplog.text


def test_questions_come_from_a_text_with_columns_or_from_a_pool(tmp_path):
    path = table(tmp_path / "x.csv", "scan,report,region", *(f"{n}.png,Fine {n}.,lung" for n in range(30)))
    given = read(path, image="scan", answer="report", ask="What do you see in the {region}?")
    assert {one.messages[0].content[1].text for one in given} == {"What do you see in the lung?"}
    drawn = [one.messages[0].content[1].text for one in read(path, image="scan", answer="report", pool="radfm_report")]
    assert len(set(drawn)) > 2
    fixed = read(path, "test", image="scan", answer="report", pool="radfm_report", split="test")
    assert len({one.messages[0].content[1].text for one in fixed}) == 1
    with pytest.raises(ValueError, match="no pool of questions 'radfm_reports'; did you mean 'radfm_report'"):
        read(path, image="scan", answer="report", pool="radfm_reports")


def test_boxes_are_the_answer_where_there_is_no_other(tmp_path):
    path = table(
        tmp_path / "x.csv",
        "image,question,boxes",
        'a.png,Find it.,"[1, 2, 3, 4]"',
        'a.png,Find all.,"[[1, 2, 3, 4], [2, 2, 3, 4]]"',
        "a.png,Find it.,",
        'a.png,Find <box><box>.,"[1, 2, 3, 4]"',
    )
    one, two, none, few = read(path)
    assert one.messages[1].content == (BoxRef(box=0),)
    assert two.messages[1].content == (BoxRef(box=0), Text(text=", "), BoxRef(box=1))
    assert "no answer" in none.message and "more <box> than" in few.message


def test_pictures_inside_a_parquet_table_are_unpacked_once(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    png, jpg = b"\x89PNG\r\n\x1a\nmade up", b"\xff\xd8\xffmade up"
    cells = [{"bytes": png, "path": None}, {"bytes": png, "path": "b.png"}, {"bytes": None, "path": "c.png"}]
    rows = {
        "image": [[cells[0]], [cells[1], cells[2]], [{"bytes": jpg, "path": None}], [{"bytes": b"?", "path": None}]],
        "question": ["What?"] * 4,
        "answer": ["this", "that", "these", "those"],
        "choices": [["a", "b"], None, [], None],
    }
    pq.write_table(pa.table(rows), tmp_path / "x.parquet")
    media = Unpacked()
    first, second, third, wrong = read(tmp_path / "x.parquet", unpack=media)
    assert sorted(media.values()) == [png, jpg] and first.media[0] == second.media[0]
    assert second.media[1] == Image(path=str(tmp_path / "c.png")) and third.media_key[0].endswith(".jpg")
    assert first.meta.choices == ("a", "b") and "unknown kind" in wrong.message


def test_a_cell_that_is_no_text_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"question": ["What?"], "answer": [["a", "b"]]}), tmp_path / "x.parquet")
    (error,) = read(tmp_path / "x.parquet")
    assert isinstance(error, SampleError) and "'answer' holds a list" in error.message


def test_a_folder_holds_one_table_per_split(tmp_path):
    for name in ("train.csv", "validation.tsv", "notes.csv"):
        table(tmp_path / name, "question\tanswer" if name.endswith("tsv") else "question,answer", "1?\t2", "3?,4")
    assert [type(one) for one in read(tmp_path, "val")] == [Sample, SampleError]
    assert len(read(tmp_path)) == 2 and read(tmp_path, "test") == []
    table(tmp_path / "train.tsv", "question\tanswer")
    with pytest.raises(LayoutError, match=r"train\.csv, train\.tsv are of one split"):
        read(tmp_path)
