"""De-identified files keep no attribute of the confidentiality profile, no private element and every pixel."""

import io
import json
import os
import signal
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import (
    BasicTextSRStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MediaStorageDirectoryStorage,
    SecondaryCaptureImageStorage,
)

import phantom
from dicom_files import LOSSLESS, SYNTAX, dataset, gdcm_compress, item, save, slices, write_series
from medmvl.imaging import deid_files
from medmvl.imaging.confidentiality import PRIVATE, Action, action_of, edition, identifying, profile
from medmvl.imaging.deid import deidentify
from medmvl.imaging.deid_files import Outcome, deidentify_files, files_of
from medmvl.imaging.pseudonym import pseudonym
from medmvl.imaging.series import read_series

pytestmark = pytest.mark.filterwarnings("ignore")  # marks are no valid values of every kind

KEY = bytes(range(32))
MARK = "PHI-123"
PIXELS = np.arange(64, dtype=np.uint16).reshape(8, 8)
SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
MARKED = {
    "AS": "087Y", "DA": "19870605", "DT": "19870605112233", "TM": "112233.77", "UI": "1.2.34567.89", "DS": "98765.25",
    "IS": "876543", "UR": f"http://{MARK}.example", "AT": 0x00281234, "SL": 0x5A6B7C, "UL": 0x5A6B7C,
    "SS": 0x5A6B, "US": 0x5A6B, "FL": 8.765e20, "FD": 8.765e20,
}  # fmt: skip
LISTED = sorted(tag for tag in profile() if dictionary_has_tag(tag) and Tag(tag).group >= 8 and tag >> 28 != 5)
SEQUENCES = [tag for tag in LISTED if dictionary_VR(tag) == "SQ"]


def marked(tag: int) -> DataElement:
    """An element of the profile whose value is to be found again if it survives."""
    vr = dictionary_VR(tag).split(" ")[0]
    if vr == "SQ":
        content = item(PatientName=MARK, StudyDate="19870605", ReferencedSOPInstanceUID="1.2.34567.89")
        if action_of(Tag(tag), None) is Action.DUMMY:  # its items keep nothing, though codes are not in the table
            content.CodeMeaning = MARK
        content.add_new((0x0011, 0x1001), "LO", MARK)
        return DataElement(tag, vr, [content])
    binary = vr.startswith("O") or vr == "UN"
    return DataElement(tag, vr, MARKED.get(vr, MARK.encode() + b"4" if binary else MARK))


def image(tags: Sequence[int] = (), syntax: str = ExplicitVRLittleEndian, **elements: object) -> Dataset:
    elements = {"StudyInstanceUID": "1.2.34567.1", "SeriesInstanceUID": "1.2.34567.2", **elements}
    data = dataset(PIXELS, syntax, **elements)
    for tag in tags:
        data.add(marked(tag))
    data.SOPInstanceUID = "1.2.34567.3"
    data.PixelData = PIXELS.astype(PIXELS.dtype.newbyteorder(">" if syntax == ExplicitVRBigEndian else "<")).tobytes()
    data["PixelData"].VR = "OW"
    return data


def run(folder: Path, out: str = "out", key: bytes = KEY, **options: object) -> list[Outcome]:
    done = deidentify_files(files_of(folder), folder.parent / out, key, workers=1, **options)
    return sorted(done, key=lambda outcome: outcome.index)


def one(tmp_path: Path, data: Dataset, **options: object) -> tuple[Outcome, Path]:
    """De-identify one data set; returns what became of it and where it is."""
    (tmp_path / "in").mkdir(exist_ok=True)
    save(tmp_path / "in" / "JANE.dcm", data)
    (outcome,) = run(tmp_path / "in", **options)
    return outcome, tmp_path / "out" / outcome.written


def survivors(data: bytes) -> list[bytes]:
    found = [value for value in MARKED.values() if isinstance(value, str)]
    return [text.encode() for text in [*found, MARK, "SECRET", "12345678", "1.2.34567"] if text.encode() in data]


def test_the_table_is_that_of_the_standard() -> None:
    table = profile()
    assert edition() == "2026d" and len(table) == 656
    assert table[0x00100010] == ("PatientName", "Z") and table[0x00080018] == ("SOPInstanceUID", "U")
    assert table[0x00081140] == ("ReferencedImageSequence", "X/Z/U*") and table[0x00080080][1] == "X/Z/D"
    assert {code for _, code in table.values()} == {"X", "Z", "D", "U", "X/Z", "X/D", "Z/D", "X/Z/D", "X/Z/U*"}
    known = [tag for tag in table if dictionary_has_tag(tag)]
    assert [keyword_for_tag(tag) for tag in known] == [table[tag][0] for tag in known] and len(known) > 620
    assert {dictionary_VR(tag) for tag in known if table[tag][1] == "U"} == {"UI"}


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_no_attribute_of_the_profile_survives(tmp_path: Path, syntax: str) -> None:
    data = image(LISTED, syntax)
    data.add_new((0x5002, 0x3000), "OW", MARK.encode() + b"4")
    data.add_new((0x6000, 0x3000), "OW", MARK.encode() + b"4")
    data.add_new((0x6000, 0x4000), "LT", MARK)
    data.add_new((0x0009, 0x0010), "LO", "SECRET")
    data.add_new((0x0008, 0x9999), "LO", MARK)  # a tag that no dictionary knows
    data.file_meta.SourceApplicationEntityTitle = MARK
    outcome, path = one(tmp_path, data)
    assert outcome.status == "written", outcome.reason
    raw = path.read_bytes()
    cleaned = dcmread(path)
    buffer = io.BytesIO()
    cleaned.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if "Deflated" in syntax.name else syntax
    cleaned.save_as(buffer, enforce_file_format=True)
    assert survivors(raw) == survivors(buffer.getvalue()) == []
    assert identifying(dcmread(path)) == []
    assert len(identifying(data)) > 600
    for tag in LISTED:
        action = action_of(Tag(tag), None)
        assert (tag in cleaned) == (action is not Action.REMOVE), keyword_for_tag(tag)
        if action is Action.DUMMY and dictionary_VR(tag) != "SQ":
            assert not cleaned[tag].is_empty, keyword_for_tag(tag)
    assert all(PRIVATE in counts or what != "removed" for what, counts in outcome.treated.items())
    assert cleaned.PixelData == data.PixelData and cleaned.Rows == 8
    told = json.dumps(outcome.treated)
    assert MARK not in told and "PatientName" in told and "19870605" not in told


def test_unknown_representations_hide_nothing(tmp_path: Path) -> None:
    inner = item(ReferencedSOPInstanceUID="1.2.34567.89", PatientName=MARK)
    buffer = io.BytesIO()
    Dataset({Tag("ReferencedSeriesSequence"): DataElement("ReferencedSeriesSequence", "SQ", [inner])}).save_as(
        buffer, implicit_vr=True, little_endian=True
    )
    encoded = buffer.getvalue()[8:]
    elements = [
        ("PatientName", b"UN\0\0", MARK.encode() + b" "),
        ("StudyInstanceUID", b"UN\0\0", b"1.2.34567.89"),
        ("ReferencedSeriesSequence", b"UN\0\0", encoded),
        ("AnatomicRegionSequence", b"OB\0\0", encoded),
        ("PatientBirthTime", b"UT\0\0", MARK.encode() + b" "),
    ]
    (tmp_path / "in").mkdir()
    with save(tmp_path / "in" / "a.dcm", image()).open("ab") as file:  # the last of two elements counts
        for keyword, vr, value in elements:
            tag = Tag(keyword)
            file.write(struct.pack("<HH4sI", tag.group, tag.element, vr, len(value)) + value)
    (outcome,) = run(tmp_path / "in")
    path = tmp_path / "out" / outcome.written
    cleaned = dcmread(path)
    assert survivors(path.read_bytes()) == [] and identifying(cleaned) == []
    assert cleaned.ReferencedSeriesSequence[0].ReferencedSOPInstanceUID.startswith("2.25.")
    assert "AnatomicRegionSequence" not in cleaned and outcome.status == "written"


def test_what_the_table_does_not_list(tmp_path: Path) -> None:
    scheme = item(CodingSchemeDesignator="SCT", CodingSchemeUID="2.16.840.1.113883.6.96")
    data = image(
        PatientBirthDateInAlternativeCalendar=MARK,
        CommentsOnTheScheduledProcedureStep=MARK,
        SecondaryReviewerName=MARK,
        CodingSchemeIdentificationSequence=[scheme],
        TargetFrameOfReferenceUID="1.2.34567.5",
        CalculationCommentType="CALC",
    )
    assert {"PatientBirthDateInAlternativeCalendar", "CommentsOnTheScheduledProcedureStep"} <= set(identifying(data))
    _, path = one(tmp_path, data)
    cleaned = dcmread(path)
    assert survivors(path.read_bytes()) == [] == identifying(cleaned)
    assert cleaned.PatientBirthDateInAlternativeCalendar == cleaned.SecondaryReviewerName == "ANONYMIZED"
    assert cleaned.CodingSchemeIdentificationSequence[0].CodingSchemeUID == "2.16.840.1.113883.6.96"
    assert cleaned.TargetFrameOfReferenceUID.startswith("2.25.") and cleaned.CalculationCommentType == "CALC"


def test_what_a_cleaned_file_says(tmp_path: Path) -> None:
    _, path = one(tmp_path, image(PatientComments=MARK, StudyDate="20200101"))
    cleaned = dcmread(path)
    assert path.read_bytes()[:128] == bytes(128)
    assert (cleaned.PatientIdentityRemoved, cleaned.LongitudinalTemporalInformationModified) == ("YES", "REMOVED")
    (code,) = cleaned.DeidentificationMethodCodeSequence
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("113100", "DCM")
    assert cleaned.PatientID == pseudonym(KEY, "12345678") == path.relative_to(tmp_path / "out").parts[0]
    assert cleaned.file_meta.MediaStorageSOPInstanceUID == cleaned.SOPInstanceUID
    assert (cleaned.PatientName, cleaned.StudyDate) == ("", "") and "PatientComments" not in cleaned
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@st.composite
def nested(draw: st.DrawFn, depth: int = 3) -> Dataset:
    """Elements of the profile, names and UIDs it does not list, and private ones, nested in sequences of all kinds."""
    data = Dataset()
    for tag in draw(st.lists(st.sampled_from(LISTED), max_size=4)):
        data.add(marked(tag))
    if draw(st.booleans()):
        data.add_new((0x0019, draw(st.integers(0x10, 0x1FFF))), draw(st.sampled_from(["LO", "UN", "OB"])), b"PHI-1234")
        data.RequestingServiceCodeSequence = [item(ReferencedSOPInstanceUID="1.2.34567.89", PersonName=MARK)]
    if depth:
        for tag in draw(st.lists(st.sampled_from([*SEQUENCES, *map(Tag, KEPT)]), max_size=3)):
            data.add_new(tag, "SQ", draw(st.lists(nested(depth - 1), max_size=2)))
    return data


KEPT = ["SharedFunctionalGroupsSequence", "PixelMeasuresSequence", "AnatomicRegionSequence", "ReferencedSeriesSequence"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=nested(), syntax=st.sampled_from(SYNTAXES[:3]))
def test_nothing_marked_survives_at_any_depth(content: Dataset, syntax: str) -> None:
    data = image(syntax=syntax)
    data.update(content)
    for keyword, value in (("PatientID", "12345678"), ("SOPInstanceUID", "1.2.34567.3")):
        setattr(data, keyword, value)
    given_file, written = io.BytesIO(), io.BytesIO()
    data.save_as(given_file, enforce_file_format=True)
    read = dcmread(io.BytesIO(given_file.getvalue()))
    deidentify(read, KEY)
    read.save_as(written, enforce_file_format=True)
    assert survivors(written.getvalue()) == []
    again = dcmread(io.BytesIO(written.getvalue()))
    assert identifying(again) == [] and again.PixelData == data.PixelData


@pytest.mark.parametrize("name", LOSSLESS)
def test_compressed_pixels_are_not_touched(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    source = gdcm_compress(tmp_path / "in" / "a.dcm", save(tmp_path / "plain.dcm", image()), LOSSLESS[name])
    (outcome,) = run(tmp_path / "in")
    before, after = dcmread(source), dcmread(tmp_path / "out" / outcome.written)
    assert before.PixelData == after.PixelData
    assert before.file_meta.TransferSyntaxUID == after.file_meta.TransferSyntaxUID
    np.testing.assert_array_equal(after.pixel_array, PIXELS)


def test_uids_are_remapped_alike_in_all_files(tmp_path: Path) -> None:
    reference = item(ReferencedSOPClassUID=SecondaryCaptureImageStorage, ReferencedSOPInstanceUID="1.2.34567.3")
    (tmp_path / "in").mkdir()
    save(tmp_path / "in" / "a.dcm", image())
    other = image(SourceImageSequence=[reference], PatientComments="another file")
    other.SOPInstanceUID = "1.2.34567.4"
    save(tmp_path / "in" / "b.dcm", other)
    first, second = (dcmread(tmp_path / "out" / outcome.written) for outcome in run(tmp_path / "in"))
    assert first.StudyInstanceUID == second.StudyInstanceUID != "1.2.34567.1"
    (source,) = second.SourceImageSequence
    assert source.ReferencedSOPInstanceUID == first.SOPInstanceUID != second.SOPInstanceUID
    assert source.ReferencedSOPClassUID == SecondaryCaptureImageStorage and first.SOPClassUID == other.SOPClassUID
    assert first.SOPInstanceUID.startswith("2.25.") and first.SOPInstanceUID.is_valid


def test_the_key_decides(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    save(tmp_path / "in" / "a.dcm", image())
    (first,), (again,), (other,) = (run(tmp_path / "in", out, key) for out, key in TRIALS)
    assert (
        first == again
        and (tmp_path / "one" / first.written).read_bytes() == (tmp_path / "two" / again.written).read_bytes()
    )
    assert first.instance != other.instance
    assert not set(Path(first.written).parts) & set(Path(other.written).parts)
    (there,) = run(tmp_path / "in", "one")
    assert there.status == "there" and there.treated == first.treated


TRIALS = [("one", KEY), ("two", KEY), ("three", bytes(32))]


def test_files_never_overwrite_each_other(tmp_path: Path) -> None:
    for number, comment in enumerate(["x", "y", "y"]):  # one SOPInstanceUID, two contents, one of them twice
        folder = tmp_path / "in" / f"{number}"
        folder.mkdir(parents=True)
        save(folder / "same_name.dcm", image(PatientComments=comment))
    outcomes = run(tmp_path / "in")
    assert [outcome.status for outcome in outcomes] == ["written", "written", "there"]
    assert outcomes[0].written != outcomes[1].written == outcomes[2].written
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 2


def test_patients_without_an_id_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for study in ("1.2.34567.7", "1.2.34567.8"):
        save(tmp_path / "in" / f"{study}.dcm", image(PatientID=" ", StudyInstanceUID=study))
    first, second = run(tmp_path / "in")
    assert first.written.split("/")[0] != second.written.split("/")[0]


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"BurnedInAnnotation": "YES"}, "BurnedInAnnotation is YES"),
        ({"RecognizableVisualFeatures": "YES"}, "RecognizableVisualFeatures is YES"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]}, "label of a slide"),
        ({"OverlayRows": 8}, "overlay lies in unused bits"),
    ],
)
def test_burned_in_text_is_refused_unless_kept(tmp_path: Path, elements: dict, reason: str) -> None:
    rows = elements.pop("OverlayRows", None)
    data = image(**elements)
    if rows:
        data.add_new((0x6000, 0x0010), "US", rows)
        data.add_new((0x6000, 0x0102), "US", 12)
    refused, _ = one(tmp_path, data)
    assert (refused.status, refused.written) == ("refused", "") and reason in refused.reason
    assert not (tmp_path / "out").exists()
    kept, path = one(tmp_path, data, keep_burned_in=True)
    assert kept.status == "written" and reason in kept.doubt
    assert dcmread(path).PatientIdentityRemoved == "NO" and identifying(dcmread(path)) == []


@pytest.mark.parametrize(
    ("elements", "doubted"),
    [
        ({"Modality": "US"}, True),
        ({"Modality": "US", "BurnedInAnnotation": "NO"}, False),
        ({"SOPClassUID": SecondaryCaptureImageStorage}, True),
        ({"ConversionType": "DF"}, True),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, True),
        ({"Modality": "CT"}, False),
    ],
)
def test_pixels_that_may_hold_text_are_pointed_out(tmp_path: Path, elements: dict, doubted: bool) -> None:
    outcome, _ = one(tmp_path, image(**elements))
    assert outcome.status == "written" and bool(outcome.doubt) == doubted


def write_directory(path: Path) -> None:
    record = item(DirectoryRecordType="PATIENT", PatientName=MARK, PatientID=MARK)
    data = item(FileSetID="DISC", DirectoryRecordSequence=[record])
    data.file_meta = image().file_meta
    data.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.34567.5"
    save(path, data)


def test_files_that_are_no_pictures_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a notes.txt").write_text("Jane Doe")
    report = item(SOPClassUID=BasicTextSRStorage, SOPInstanceUID="1.2.3", TextValue=MARK, PatientName=MARK)
    report.file_meta = image().file_meta
    save(folder / "b.dcm", report)
    write_directory(folder / "c.dcm")
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = MARK
    save(folder / "d.dcm", report)
    outcomes = run(folder)
    assert MARK not in str(outcomes)
    assert [outcome.status for outcome in outcomes] == ["left_out"] * 4 and "DICOMDIR" in outcomes[2].reason
    assert "no DICOM" in outcomes[0].reason and "Basic Text SR" in outcomes[1].reason
    assert not (tmp_path / "out").exists()


def test_broken_files_lose_nothing_else_and_say_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    whole = save(folder / "a.dcm", image()).read_bytes()
    (folder / "b.dcm").write_bytes(whole[:-10])
    (folder / "c.dcm").write_bytes(whole[: whole.index(b"SECRET") + 3])
    packed = gdcm_compress(folder / "d.dcm", folder / "a.dcm", LOSSLESS["jpeg_ls"]).read_bytes()
    (folder / "d.dcm").write_bytes(packed[:-20])
    data = image()
    data.BitsAllocated = 32
    save(folder / "e.dcm", data)
    deadly = save(folder / "f.dcm", image(PatientComments="deadly"))
    odd = image()
    odd.add_new("SeriesDate", "DA", MARK)
    odd["StudyInstanceUID"] = DataElement("StudyInstanceUID", "LO", MARK)
    save(folder / "g.dcm", odd)
    read = deid_files.dcmread

    def reading(path: Path, **options: object) -> Dataset:
        if path == deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(path, **options)

    monkeypatch.setattr(deid_files, "dcmread", reading)
    outcomes = run(folder)
    assert [outcome.status for outcome in outcomes] == ["written", *["broken"] * 5, "written"]
    assert "signal 9" in outcomes[5].reason and "of 256 bytes" in outcomes[4].reason
    assert MARK not in str(outcomes) and "SECRET" not in str(outcomes)
    assert survivors((tmp_path / "out" / outcomes[6].written).read_bytes()) == []


def test_a_deflated_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deid_files, "_INFLATED_LIMIT", 2**16)
    big = image(syntax=DeflatedExplicitVRLittleEndian)
    big.Rows, big.Columns, big.PixelData = 512, 512, bytes(512 * 512 * 2)
    outcome, _ = one(tmp_path, big)
    assert outcome.status == "broken" and "unpacks to more" in outcome.reason


def test_files_without_a_preamble(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    data = image(syntax=ImplicitVRLittleEndian)
    del data.file_meta
    data.save_as(tmp_path / "in" / "old", implicit_vr=True, little_endian=True)
    (outcome,) = run(tmp_path / "in")
    cleaned = dcmread(tmp_path / "out" / outcome.written)
    assert cleaned.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian and cleaned.PixelData == data.PixelData


def test_identifying() -> None:
    assert identifying(Dataset()) == []
    data = image(StudyDate="20200101", PatientComments="", ContentDate="19000101")
    data.add_new((0x0009, 0x1001), "LO", "x")
    data.SharedFunctionalGroupsSequence = [item(PatientWeight="70")]
    data.file_meta.SourceApplicationEntityTitle = "HOSPITAL"
    told = ["PatientBirthDate", "PatientID", "PatientName", "PatientWeight", PRIVATE, "SOPInstanceUID"]
    told += ["SeriesInstanceUID", "SourceApplicationEntityTitle", "StudyDate", "StudyInstanceUID"]
    assert identifying(data) == sorted(told)
    data.PatientIdentityRemoved = "YES"  # by someone else: UIDs may stay, the rest may not
    assert identifying(data) == sorted(name for name in told if not name.endswith("InstanceUID"))


def test_uids_of_classes_are_kept() -> None:
    assert action_of(Tag("SOPClassUID"), "UI") is Action.KEEP
    assert action_of(Tag("StudyInstanceUID"), "UI") is Action.REMAP
    assert action_of(Tag("SharedFunctionalGroupsSequence"), "OB") is Action.REMOVE
    assert action_of(Tag(0x0011, 0x0010), "LO") is Action.REMOVE


@pytest.mark.parametrize("compress", [None, SYNTAX.JPEGLSLossless])
def test_a_cleaned_series_is_the_same_volume(tmp_path: Path, compress: object) -> None:
    made = slices(phantom.image("LPS"), AcquisitionDate="20200101", StudyInstanceUID="1.2.34567.1")
    write_series(tmp_path / "in", made, compress=compress)
    outcomes = run(tmp_path / "in")
    (folder,) = {(tmp_path / "out" / outcome.written).parent for outcome in outcomes}
    before, after = read_series(tmp_path / "in"), read_series(folder)
    np.testing.assert_array_equal(before.array, after.array)
    assert (before.spacing, before.origin, before.direction) == (after.spacing, after.origin, after.direction)


@settings(max_examples=150, deadline=None)
@given(
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    end=st.floats(0.1, 1),
    seed=st.booleans(),
)
def test_damaged_files_are_told_and_never_raise(places: list[tuple[float, int]], end: float, seed: bool) -> None:
    buffer = io.BytesIO()
    image(LISTED[:: 2 if seed else 40], ImplicitVRLittleEndian if seed else ExplicitVRLittleEndian).save_as(
        buffer, enforce_file_format=True
    )
    data = bytearray(buffer.getvalue())
    for place, value in places:
        data[int(place * (len(data) - 1))] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "SECRET"
        path.write_bytes(data[: int(end * len(data))])
        outcome = deid_files._outcome(Path(folder) / "out", KEY, False, (0, path))
        assert outcome.status in ("written", "broken", "left_out", "refused") and MARK not in outcome.reason
        if outcome.status == "written":
            assert identifying(dcmread(Path(folder) / "out" / outcome.written)) == []
