"""Samples: what is read, what is refused and how, and that nothing is lost on the way out and back."""

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from medmvl.core.schema import Box, BoxRef, Image, Message, Sample, SampleError, Text, Volume


def canonical(**changes: object) -> dict:
    sample = {
        "id": "a",
        "messages": [
            {"role": "user", "content": [{"type": "image", "path": "x/1.png"}, {"type": "text", "text": "Where?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "At "}, {"type": "box", "box": 0}]},
        ],
        "source": "set",
        "task": "set/rec",
        "split": "test",
        "meta": {"patient": "p1", "boxes": [{"media": 0, "coords": [1, 2, 3.5, 4]}], "centre": "north"},
    }
    return sample | changes


def reference(**changes: object) -> dict:
    sample = {
        "id": "r_1",
        "conversations": [
            {"from": "human", "value": " Look: <image>\n and <image3d> now? "},
            {"from": "gpt", "value": "An <image> is text here."},
        ],
        "image": ["a.png"],
        "image3d": ["b.npy"],
    }
    return sample | changes


def refused(data: object, root: object = None) -> str:
    with pytest.raises(SampleError) as caught:
        Sample.from_dict(data, root=root)
    return str(caught.value)


def test_canonical_is_read_whole() -> None:
    sample = Sample.from_dict(canonical(), root="/data")
    assert sample.media == (Image(path="/data/x/1.png"),)
    assert sample.media_key == ("/data/x/1.png",)
    assert (sample.patient, sample.answer, sample.task) == ("p1", "At ", "set/rec")
    assert sample.meta.boxes[0].coords == (1.0, 2.0, 3.5, 4.0)
    assert sample.meta.centre == "north"  # type: ignore[attr-defined]
    assert sample.messages[1].content[1] == BoxRef(box=0)


def test_there_and_back() -> None:
    sample = Sample.from_dict(canonical(), root="/data")
    written = sample.to_dict(root="/data")
    assert written["messages"][0]["content"][0]["path"] == "x/1.png"
    assert Sample.from_dict(written, root="/data") == sample
    assert Sample.from_dict(sample.to_dict()) == sample


@pytest.mark.parametrize("flags", [{"blank": True}, {"mirrored": True}, {"blank": True, "mirrored": True}])
@pytest.mark.parametrize("kind", ["image", "volume"])
def test_what_is_done_to_a_medium_goes_there_and_back(kind: str, flags: dict[str, bool]) -> None:
    content = [{"type": kind, "path": "x/1.png", **flags}, {"type": "text", "text": "Where?"}]
    sample = Sample.from_dict({"id": "a", "messages": [{"role": "user", "content": content}]}, root="/data")
    (medium,) = sample.media
    assert (medium.blank, medium.mirrored) == (flags.get("blank", False), flags.get("mirrored", False))
    assert sample.media_key == ("/data/x/1.png",), "what is done to a file does not change which it is"
    written = sample.to_dict(root="/data")
    assert written["messages"][0]["content"][0] == {"type": kind, "path": "x/1.png", **flags}
    assert json.loads(sample.to_json(root="/data")) == written
    assert Sample.from_dict(written, root="/data") == sample
    assert "mirrored" not in json.dumps(Sample.from_dict(canonical()).to_dict())


def test_reference_annotation() -> None:
    data = reference(answer="Yes.", task="vqa", data_source="slake")
    sample = Sample.from_dict(data | {"conversations": [*data["conversations"], {"from": "human", "value": "Sure?"}]})
    assert sample.messages[0].content == (
        Text(text="Look: "),
        Image(path="a.png"),
        Text(text="\n and "),
        Volume(path="b.npy"),
        Text(text=" now?"),
    )
    assert sample.messages[1].content == (Text(text="An <image> is text here."),)
    assert (sample.answer, sample.task, sample.source) == ("Yes.", "vqa", "slake")
    assert Sample.from_dict(sample.to_dict()) == sample


def test_reference_single_path_and_number_as_id() -> None:
    data = {"id": 7, "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\nDescribe."}]}
    sample = Sample.from_dict(data)
    assert (sample.id, sample.media_key) == ("7", ("a.jpg",))


def test_reference_answer_is_said_once() -> None:
    assert len(Sample.from_dict(reference(answer="An <image> is text here. ")).messages) == 2
    assert "'answer' says something else" in refused(reference(answer="No."))


def test_misspelt_conversations() -> None:
    data = reference()
    data["conversatons"] = data.pop("conversations")
    assert "'conversations' (or 'messages') is missing; conversatons: did you mean 'conversations'" in refused(data)
    assert "missing; Message: did you mean 'messages'?" in refused({"id": "r_1", "Message": []})
    told = refused({"id": "r_1", "image": "a.png", "images": []})
    assert told.endswith("'conversations' (or 'messages') is missing")


def test_a_key_that_resembles_a_known_one_is_kept_where_that_is_there() -> None:
    sample = Sample.from_dict(reference(conversation_id="c7", imagee=["b"]))
    assert sample.meta.model_extra["conversation_id"] == "c7" and sample.media_key[0] == "a.png"


@pytest.mark.parametrize("root", [None, "/data"])
def test_a_zero_byte_in_a_path_is_refused(root) -> None:
    part = {"type": "image", "path": "a\0.png"}
    for data in (canonical(messages=[{"role": "user", "content": [part]}], meta={}), reference(image=["a\0.png"])):
        with pytest.raises(SampleError, match="holds a zero byte"):
            Sample.from_dict(data, root)


def test_half_a_character_is_refused() -> None:
    said = refused(canonical(messages=[{"role": "user", "content": "caf\ud800"}]))
    assert "messages[0].content[0].text: holds half of a character ('\\ud800' at 3)" in said
    assert "id: holds half of a character" in refused(canonical(id="a\udc00"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": []}, "<image> 1 times, but 0"),
        ({"image": ["a", "b"]}, "<image> 1 times, but 2"),
        ({"image3d": None}, "<image3d> 1 times, but 0"),
        ({"imagee": ["a"], "image": None}, "did you mean 'image'"),
        ({"conversations": [{"from": "humn", "value": "x"}], "image": [], "image3d": []}, "did you mean 'human'"),
        ({"conversations": "hello"}, "list of turns"),
        ({"conversations": [{"from": "human"}]}, "conversations[0]"),
        ({"image": [3]}, "list of paths"),
    ],
)
def test_reference_mistakes(changes: dict, said: str) -> None:
    message = refused(reference(**changes))
    assert said in message and "'r_1'" in message


def test_all_mistakes_of_a_sample_at_once() -> None:
    bad = canonical(mesages=[], metta={}) | {
        "messages": [{"role": "usr", "content": [{"type": "imag", "path": "a"}, {"type": "image", "pth": "a"}]}]
    }
    message = refused(bad)
    for said in ("'a'", "did you mean 'messages'", "did you mean 'meta'", "did you mean 'user'", "did you mean 'image'",
                 "messages[0].content[1].path: required", "did you mean 'path'"):  # fmt: skip
        assert said in message
    assert "at least 1" not in message


@pytest.mark.parametrize("path", ["../x.png", "a/../../x.png", "/etc/passwd", "/data2/x.png", "a/./../../data2/x"])
def test_paths_that_leave_the_root(path: str) -> None:
    data = canonical(messages=[{"role": "user", "content": [{"type": "image", "path": path}]}], meta={})
    with pytest.raises(SampleError, match="leaves the given folders") as caught:
        Sample.from_dict(data, root="/data")
    assert caught.value.path == path
    assert Sample.from_dict(data).media_key == (path,)


def test_paths_inside_the_root(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "x.png").touch()
    roots = [tmp_path / "one", tmp_path / "two"]

    def placed(path: str) -> str:
        data = canonical(messages=[{"role": "user", "content": [{"type": "image", "path": path}]}], meta={})
        return Sample.from_dict(data, root=roots).media_key[0]

    assert placed("x.png") == str(tmp_path / "two" / "x.png")
    assert placed("x.png#frame=2") == str(tmp_path / "two" / "x.png#frame=2")
    assert placed("y.png") == str(tmp_path / "one" / "y.png")
    assert placed(str(tmp_path / "two" / "sub" / ".." / "x.png")) == str(tmp_path / "two" / "x.png")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"meta": {}}, "shows box 0, but meta.boxes has 0"),
        ({"meta": {"boxes": [{"media": 1, "coords": [0, 0, 1, 1]}]}}, "lies on media 1, but the sample has 1"),
        ({"meta": {"boxes": [{"coords": [0, 0, 0, 1, 1, 1]}]}}, "needs 4 coordinates"),
        ({"meta": {"boxes": [{"coords": [0, 0, 1]}]}}, "4 coordinates"),
        ({"meta": {"boxes": [{"coords": [5, 0, 1, 1]}]}}, "lower corner"),
        ({"meta": {"boxes": [{"coords": [0, 0, float("nan"), 1]}]}}, "finite"),
        ({"meta": {"boxes": [{"cords": [0, 0, 1, 1]}]}}, "did you mean 'coords'"),
        ({"messages": []}, "at least 1"),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "image", "path": "a"}]}]},
            "an assistant answers in text",
        ),
    ],
)
def test_inconsistent_samples(changes: dict, said: str) -> None:
    assert said in refused(canonical(**changes))


@pytest.mark.parametrize("alias", ["coords", "box", "xyxy"])
def test_names_of_coordinates(alias: str) -> None:
    assert Box.model_validate({alias: [0, 1, 2, 3]}).coords == (0, 1, 2, 3)
    assert Box.model_validate({"corners": [[0, 1, 2], [3, 4, 5]]}).coords == (0, 1, 2, 3, 4, 5)


def test_prompt_and_answer() -> None:
    turn = Message(role="assistant", content="first")  # type: ignore[arg-type]
    asked = Message(role="user", content="q")  # type: ignore[arg-type]
    sample = Sample(id="s", messages=(asked, turn, asked, turn, turn))
    assert sample.prompt().messages == (asked, turn, asked)
    assert sample.prompt().prompt() == sample.prompt()
    assert (sample.answer, sample.patient, sample.prompt().answer) == ("first", "s", "first")
    with pytest.raises(SampleError, match="nothing to ask"):
        Sample(id="s", messages=(turn,)).prompt()


def test_frozen_and_an_error_that_travels() -> None:
    sample = Sample.from_dict(canonical())
    with pytest.raises(ValidationError):
        sample.id = "b"  # type: ignore[misc]
    error = pickle.loads(pickle.dumps(SampleError("broken", "a", "x.png")))
    assert str(error) == "sample 'a' (x.png): broken" and isinstance(error, ValueError)


def test_no_mapping_and_no_roots() -> None:
    assert "JSON object" in refused(["a"])
    with pytest.raises(ValueError, match="roots is empty"):
        Sample.from_dict(canonical(), root=[])


texts = st.text(max_size=30)


@given(
    before=texts,
    after=texts,
    answer=texts,
    path=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=10),
)
def test_reference_text_is_kept(before: str, after: str, answer: str, path: str) -> None:
    before, after = before.replace("<image", "<imag"), after.replace("<image", "<imag")
    value = f"{before}<image>{after}"
    data = {"id": "i", "image": [path], "conversations": [{"from": "human", "value": value}], "answer": answer}
    sample = Sample.from_dict(data)
    shown = "".join(part.text if isinstance(part, Text) else "<image>" for part in sample.messages[0].content)
    assert shown == value.strip()
    assert (sample.answer, sample.media_key) == (answer, (path,))
    assert Sample.from_dict(sample.to_dict()) == sample


def test_reference_rows_keep_keys_of_their_own_and_refuse_misspelt_ones() -> None:
    turns = [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "This.", "weight": 1}]
    row = {"id": "1", "conversations": turns, "model": "", "source": "set", "idx": 3, "patient": "p1"}
    sample = Sample.from_dict(row)
    assert sample.meta.patient == "p1"
    assert sample.to_dict()["meta"]["idx"] == 3
    with pytest.raises(SampleError, match=r"unknown key 'images'; did you mean 'image'"):
        Sample.from_dict({**row, "images": ["a.png"]})


ODD = st.sampled_from(
    [None, 3, 2.5, True, "", "\ud800", "ü", [], {}, ["a"], {"type": "text"}, "a/../../b", "/r/x.png", "b#frame=2"]
)
NEVER = st.nothing()


def rows(odd: st.SearchStrategy) -> st.SearchStrategy:
    """Return canonical samples; any of their values may be `odd`."""
    words = st.one_of(st.text(max_size=12), odd)
    paths = st.sampled_from(["a.png", "a/b.nii.gz", "a//b", "./a", "a/../b", "a#frame=1", ".h", "/r/a.png", "/r//b"])
    text = st.fixed_dictionaries({"type": st.just("text"), "text": words})
    box = st.fixed_dictionaries({"type": st.just("box"), "box": st.one_of(st.just(0), odd)})
    picture = st.fixed_dictionaries(
        {"type": st.just("image"), "path": st.one_of(paths, odd)}, optional={"blank": st.one_of(st.booleans(), odd)}
    )
    roles = st.one_of(st.sampled_from(["system", "user", "assistant"]), odd)
    parts = st.one_of(st.lists(st.one_of(text, box, odd), max_size=3), words)
    said = st.fixed_dictionaries({"role": roles, "content": parts})
    shown = st.builds(
        lambda media, content: {"role": "user", "content": media + content},
        st.lists(st.one_of(picture, odd), max_size=2),
        st.lists(st.one_of(text, odd), max_size=2),
    )
    boxes = st.fixed_dictionaries({"coords": st.one_of(st.just([0, 1, 2, 3]), odd)}, optional={"label": words})
    meta = {
        "patient": words,
        "study": words,
        "choices": st.one_of(st.lists(words, max_size=2), odd),
        "attributes": st.one_of(st.dictionaries(st.text(max_size=3), words, max_size=2), odd),
        "boxes": st.one_of(st.lists(st.one_of(boxes, odd), max_size=2), odd),
        "own": ODD,
        "number": st.floats(),
    }
    metas = st.one_of(st.just({}), st.fixed_dictionaries({}, optional=meta), odd)
    messages = st.builds(lambda first, rest: [first, *rest], shown, st.lists(st.one_of(said, shown, odd), max_size=2))
    texts = {key: words for key in ("source", "task", "split")}
    return st.fixed_dictionaries(
        {"id": words, "messages": st.one_of(messages, odd)}, optional={**texts, "meta": metas, "further": odd}
    )


@settings(max_examples=800, deadline=None)
@given(st.one_of(rows(NEVER), rows(ODD)), st.sampled_from([None, ("/r",), ("/r", "/s")]))
def test_what_is_made_quickly_is_what_validation_makes(row: dict, roots: tuple[str, ...] | None) -> None:
    try:
        slow = Sample.model_validate(row, context=roots)
    except ValidationError:
        with pytest.raises(SampleError):
            Sample.from_dict(row, roots)
        return
    quick = Sample.from_dict(row, roots)
    assert quick == slow and repr(quick) == repr(slow)
    assert quick.model_fields_set == slow.model_fields_set and quick.meta.model_extra == slow.meta.model_extra
    for root in (None, "/r", "/"):
        text = json.dumps(quick.to_dict(root), ensure_ascii=False, separators=(",", ":"))
        assert quick.to_json(root) == text == slow.to_json(root)


@settings(max_examples=200, deadline=None)
@given(rows(NEVER))
def test_meta_is_written_as_pydantic_writes_it(row: dict) -> None:
    try:
        sample = Sample.model_validate(row)
    except ValidationError:
        return
    expected = sample.meta.model_dump(mode="json", exclude={"boxes"}, exclude_defaults=True)
    written = {key: value for key, value in sample.to_dict()["meta"].items() if key != "boxes"}
    assert json.dumps(written) == json.dumps(expected)


def test_a_volume_shown_as_a_picture_is_told_so():
    row = {"id": "a", "image3d": ["a.nii.gz"], "conversations": [{"from": "human", "value": "<image>\nWhat?"}]}
    with pytest.raises(SampleError, match="<image3d> a volume's"):
        Sample.from_dict(row)
    with pytest.raises(SampleError, match="one path per placeholder"):
        Sample.from_dict({**row, "image3d": []})
