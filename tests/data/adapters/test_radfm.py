"""RadFM: each of its lists, its stacked arrays, and paths of its authors' machines."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

import adapter_root
from medmvl.core.schema import Image, SampleError, Volume
from medmvl.data.adapters.base import LayoutError
from medmvl.data.adapters.radfm import LISTS, RadFm
from medmvl.data.questions import pool
from medmvl.imaging.read import read_volume

roots = adapter_root.builder("radfm")


@pytest.fixture
def root(tmp_path):
    return roots.write(tmp_path / "radfm")


class Unpacked:
    """Keeps what is unpacked, and how often."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.names = folder, []

    def __call__(self, name: str, content: bytes) -> str:
        self.names.append(name)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return str(path)


def _read(root, unpack, split="train", *tasks, **options):
    given = {"prefixes": {roots.AUTHORS + "/": "local"}, **options}
    read = list(RadFm(root, given, unpack).samples(split, tasks or ["medmd", "radmd"]))
    samples = [one for one in read if not isinstance(one, SampleError)]
    return samples, [one for one in read if isinstance(one, SampleError)]


def _of(samples, name):
    return [sample for sample in samples if sample.meta.model_extra["list"] == name]


def _asked(sample) -> str:
    return sample.messages[0].content[-1].text


def test_pictures(root, tmp_path) -> None:
    samples, refused = _read(root, Unpacked(tmp_path / "media"))
    (caption,) = _of(samples, "pmc_oa")
    assert (caption.task, caption.answer) == ("radfm/medmd", "A brain")
    assert caption.media_key == (str(root / "pmc_oa/PMC1_fig1_a.jpg"),)
    (report,) = _of(samples, "mimic_caption")
    assert report.media_key == (str(root / "local/mimic/p10/a.jpg"),) and _asked(report) in pool("radfm_report")
    yes, no = _of(samples, "chestxray_balance")
    assert (yes.answer, no.answer) == ("yes", "no") and yes.meta.choices == ("yes", "no")
    assert _asked(yes) == "Can you identify any visible signs of Cardiomegaly in the image?"
    assert [sample.answer for sample in _of(samples, "pcxr")] == ["Pneumonia,Bronchitis"]
    (question,) = _of(samples, "pmcvqa")
    assert question.media_key == (str(root / "local/PMC-VQA/PMC1_fig1_a.jpg"),)
    (case,) = _of(samples, "case_report")
    assert [Path(key).name for key in case.media_key] == ["PMC2_fig1.jpg", "PMC2_fig2.jpg"]
    assert (_asked(case), case.answer) == ("A man of 60.\n What does the CT show?", "A mass.")
    assert case.meta.patient == "PMC2"
    (pix,) = _of(samples, "medpix_single")
    assert (pix.task, pix.answer) == ("radfm/radmd", "CT") and pix.media_key == (str(root / "images/synpic1.png"),)
    told = {error.path: error.message for error in refused}
    assert "label is 0 or 1" in told["chestxray_balance_train_new.csv:4"]
    assert "prefixes says where" in told["chestxray_balance_train_new.csv:5"]
    assert "leaves" in told["pmcvqa_train.csv:3"] and "img_ref" in told["filtered_case_report_train.csv:3"]


def test_a_stack_of_scans_is_taken_apart_once(root, tmp_path) -> None:
    unpack = Unpacked(tmp_path / "media")
    samples, refused = _read(root, unpack)
    (question,), (report, features) = _of(samples, "radiology_vqa"), _of(samples, "radiology")
    assert question.media_key == report.media_key == features.media_key and len(report.media) == 2
    assert len(unpack.names) == len(set(unpack.names)) == 3  # two scans, one NIfTI
    first, second = (read_volume(key) for key in report.media_key)
    assert first.size == (5, 6, 6) and not first.oriented and first.unit == "0..255"
    stored = roots.scans()
    expected = np.rint((stored[:, 0] - stored.min()) / np.ptp(stored) * 255)
    np.testing.assert_array_equal(first.array, np.moveaxis(expected[0], -1, 0))
    np.testing.assert_array_equal(second.array, np.moveaxis(expected[1], -1, 0))
    assert any("9.npy" in error.message and "No such file" in error.message for error in refused)


def test_reports(root, tmp_path) -> None:
    samples, refused = _read(root, Unpacked(tmp_path / "media"), lists="radiology")
    report, features = samples
    assert report.answer == "Finding: A mass in the left lobe. Impression: Glioma."
    assert _asked(report).startswith("Age: 60. Headache. ")
    assert features.answer.startswith("Glioma Brain tumour The radiographic features")
    assert features.answer.endswith("Gliomas enhance.")
    assert report.meta.patient == features.meta.patient == "12"
    assert "both 'finding' and 'impression'" in refused[0].message


def test_a_nifti_made_of_slices_claims_no_left_and_right(root, tmp_path) -> None:
    (sample,), _ = _read(root, Unpacked(tmp_path / "media"), lists="radio_modality")
    (volume,) = sample.media
    assert isinstance(volume, Volume) and sample.answer == "CT" and sample.meta.patient == "12"
    read = read_volume(volume.path)
    assert read.size == (5, 6, 6) and not read.oriented
    np.testing.assert_array_equal(read.array, np.moveaxis((roots.scans()[0, 0] * 10).astype(np.uint8), -1, 0))


def test_single_slices_are_pictures(root, tmp_path) -> None:
    np.save(root / "processed_images/0/7.npy", roots.scans()[:1, ..., :1])
    (sample,), _ = _read(root, Unpacked(tmp_path / "media"), lists="radiology_vqa")
    (picture,) = sample.media
    assert isinstance(picture, Image)
    with Picture.open(picture.path) as opened:
        assert opened.size == (6, 6)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((2, 3, 4, 4, 2)), "nothing is to be seen"),
        (np.full((1, 3, 4, 4, 2), np.nan), "nothing is to be seen"),
        (np.zeros((4, 4, 4)), r"\[scan, 3, row, column, slice\]"),
        (np.array([{"a": 1}], object), "cannot be read as .npy"),
    ],
)
def test_other_arrays_are_refused(root, tmp_path, array, told) -> None:
    np.save(root / "processed_images/0/7.npy", array, allow_pickle=True)
    samples, refused = _read(root, Unpacked(tmp_path / "media"), lists="radiology_vqa")
    assert not samples
    with pytest.raises(SampleError, match=told):
        raise refused[0]


def test_an_array_cut_off_is_refused(root, tmp_path) -> None:
    path = root / "processed_images/0/7.npy"
    path.write_bytes(path.read_bytes()[:-100])
    _, refused = _read(root, Unpacked(tmp_path / "media"), lists="radiology_vqa")
    assert "cannot be read as .npy" in refused[0].message


def test_lists_can_be_chosen_and_must_exist(root, tmp_path) -> None:
    unpack = Unpacked(tmp_path / "media")
    samples, _ = _read(root, unpack, lists="pmcvqa, pcxr")
    assert {sample.meta.model_extra["list"] for sample in samples} == {"pmcvqa", "pcxr"}
    with pytest.raises(LayoutError, match=r"mammo_train_new\.csv"):
        _read(root, unpack, lists="mammo")
    with pytest.raises(ValueError, match="did you mean 'pmcvqa'"):
        _read(root, unpack, lists="pmc_vqa")
    (test,), _ = _read(root, unpack, "test")
    assert test.answer == "Effusion."


def test_both_spellings_of_lists_are_known(root, tmp_path) -> None:
    unpack = Unpacked(tmp_path / "media")
    (root / "data_csv/filtered_case_report_train.csv").rename(root / "filtered_casa_report_train.csv")
    samples, _ = _read(root, unpack, lists="case_report")
    assert len(samples) == 1
    assert {one.task for one in LISTS.values()} == set(RadFm.tasks)
