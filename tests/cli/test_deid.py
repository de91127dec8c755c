"""`medmvl data deid`: what it writes, what it says, and that neither names a patient."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

from dicom_files import dataset, save
from medmvl.cli.main import main
from medmvl.imaging.confidentiality import identifying

PIXELS = np.arange(64, dtype=np.uint16).reshape(8, 8)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two patients, one file with text in its pixels, one broken, one that is no DICOM; all names are identifiers."""
    folder = tmp_path / "export" / "SECRET JANE"
    folder.mkdir(parents=True)
    for number, patient in enumerate(["4711", "4712"]):
        data = dataset(PIXELS + number, PatientID=patient, StudyInstanceUID=f"1.2.{number}", SeriesInstanceUID="1.2.9")
        data.add_new((0x0009, 0x1001), "LO", "SECRET")
        save(folder / f"JANE_{number}.dcm", data)
    save(folder / "JANE_2.dcm", dataset(PIXELS, PatientID="4711", BurnedInAnnotation="YES"))
    (folder / "JANE_3.dcm").write_bytes((folder / "JANE_0.dcm").read_bytes()[:-9])
    (folder / "JANE_4.txt").write_text("SECRET")
    save(folder / "JANE_5.dcm", dataset(PIXELS, PatientID="4711", Modality="US"))
    return tmp_path / "export"


def run(*words: object) -> int:
    return main(["data", "deid", *map(str, words)])


def test_a_tree(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, key, report = tmp_path / "out", tmp_path / "keys" / "study.key", tmp_path / "report.json"
    assert run(source, out, "--key-file", key, "--report", report) == 1
    said = capsys.readouterr()
    written = sorted(out.rglob("*.dcm"))
    assert len(written) == 3 and len(list(out.iterdir())) == 2
    assert all(identifying(dcmread(path)) == [] for path in written)
    assert "3 written" in said.out and "2 patients" in said.out and "new key" in said.out
    assert "file 2: its BurnedInAnnotation is YES" in said.err and "file 3: is cut off" in said.err
    assert "file 4: is no DICOM file" in said.err and "file 5: pictures of modality US" in said.err
    told = json.loads(report.read_text())
    assert told["files"] == {"written": 3, "refused": 1, "broken": 1, "left_out": 1} and told["edition"] == "2026d"
    assert told["attributes"]["removed"] == {"PrivateAttributes": 2}
    assert [row["file"] for row in told["outcomes"]] == list(range(6))
    assert {row["written"] for row in told["outcomes"] if row["status"] == "written"} == {
        path.relative_to(out).as_posix() for path in written
    }
    everything = said.out + said.err + report.read_text() + " ".join(map(str, written))
    assert not any(name in everything for name in ("JANE", "SECRET", "4711", "1.2.9"))
    assert key.stat().st_mode & 0o777 == 0o600 and len(key.read_bytes()) == 32


def test_a_second_run_with_the_key_goes_on(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "study.key"
    run(source, tmp_path / "one", "--key-file", key)
    run(source, tmp_path / "two", "--key-file", key, "--workers", 1)
    run(source, tmp_path / "three")
    names = [
        {path.relative_to(tmp_path / out).as_posix() for path in (tmp_path / out).rglob("*.dcm")}
        for out in ("one", "two", "three")
    ]
    assert names[0] == names[1] and not names[0] & names[2]
    (tmp_path / "one" / min(names[0])).unlink()
    capsys.readouterr()
    assert run(source, tmp_path / "one", "--key-file", key) == 1
    assert "1 written, 2 were there" in capsys.readouterr().out
    assert run(source, tmp_path / "three") != 0
    assert "--key-file" in capsys.readouterr().err


def test_names_are_told_on_request_only(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    run(source, tmp_path / "out", "--report", report, "--report-names", "--keep-burned-in")
    assert "JANE_3.dcm: is cut off" in capsys.readouterr().err
    rows = json.loads(report.read_text())["outcomes"]
    assert rows[2]["status"] == "written" and rows[2]["path"].endswith("JANE_2.dcm")
    assert dcmread(tmp_path / "out" / rows[2]["written"]).PatientIdentityRemoved == "NO"


def test_one_file_and_nothing_wrong(source: Path, tmp_path: Path) -> None:
    assert run(source / "SECRET JANE" / "JANE_0.dcm", tmp_path / "out") == 0
    (path,) = (tmp_path / "out").rglob("*.dcm")
    assert dcmread(path).PixelData == PIXELS.tobytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("export", "export/out"), "beside it"),
        (("export/SECRET JANE", "export"), "beside it"),
        (("export", "out", "--key-file", "out/study.key"), "must not lie in"),
        (("export", "out", "--report", "out/r.json", "--report-names"), "must not lie in"),
        (("export", "out", "--key-file", "short.key"), "32 or more random bytes"),
        (("nowhere", "out"), "does not exist"),
        (("empty", "out"), "holds no files"),
    ],
)
def test_mistakes(
    source: Path, tmp_path: Path, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.key").write_bytes(b"password")
    (tmp_path / "empty").mkdir()
    assert run(*(word if word.startswith("--") else tmp_path / word for word in words)) != 0
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out/**/*.dcm"))


def with_comment(comment: bytes) -> bytes:
    """A JPEG whose first segment is a comment, as a DICOM item."""
    stream = io.BytesIO()
    Image.fromarray(PIXELS.astype(np.uint8)).save(stream, "JPEG")
    packed = stream.getvalue()
    segment = b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment if comment else b""
    return encapsulate([packed[:2] + segment + packed[2:]])


def test_a_comment_inside_the_pixels_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    for number, comment in enumerate([b"", b"SECRET JANE"]):
        data = dataset(PIXELS.astype(np.uint8), JPEGBaseline8Bit, StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.9")
        data.PixelData = with_comment(comment)
        data["PixelData"].is_undefined_length = True
        save(folder / f"{number}.dcm", data)
    assert run(folder, tmp_path / "out", "--report", tmp_path / "report.json") == 0
    said = capsys.readouterr()
    assert "1 files with a comment inside their pixel data" in said.out
    assert "file 1: holds a comment inside its pixel data: look at it" in said.err
    assert "file 0" not in said.err and "SECRET" not in said.out + said.err
    rows = json.loads((tmp_path / "report.json").read_text())["outcomes"]
    assert [row.get("comment_inside_pixels", False) for row in rows] == [False, True]
    assert dcmread(tmp_path / "out" / rows[1]["written"]).PixelData == with_comment(b"SECRET JANE")
