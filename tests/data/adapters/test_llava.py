"""LLaVA-Pretrain and LLaVA-Med: their turns, pictures and variants."""

import pytest

from adapter_root import build
from medmvl.core.schema import Image, Sample, Text
from medmvl.data.adapters.llava_med import LlavaMed
from medmvl.data.adapters.llava_pretrain import LlavaPretrain


def good(adapter, *tasks):
    return [one for one in adapter.samples("train", tasks or list(adapter.tasks)) if isinstance(one, Sample)]


def test_the_picture_stands_where_the_caption_asks_for_it(tmp_path):
    root = build("llava_pretrain", tmp_path / "root")
    after, before = good(LlavaPretrain(root.path))
    picture = Image(path=str(root.path / "images/00453/004539375.jpg"))
    ask = "Render a clear and concise summary of the photo."
    assert after.messages[0].content == (Text(text=f"{ask}\n"), picture)
    assert before.messages[0].content == (picture, Text(text=f"\n{ask}"))
    assert (after.id, after.answer) == ("004539375", "select luxury furniture")


def test_figures_of_both_tasks_keep_apart(tmp_path):
    root = build("llava_med", tmp_path / "root")
    alignment, instruct = good(LlavaMed(root.path))
    assert (alignment.id, instruct.id) == ("alignment/32432162_F1", "instruct/32432162_F1")
    assert alignment.media_key == instruct.media_key == (str(root.path / "images/32432162_F1.jpg"),)
    assert (alignment.meta.modality, instruct.meta.modality) == ("chest_xray", "")
    assert alignment.meta.model_extra["domain"]["mri"] is False and alignment.meta.study == "32432162"
    assert [message.role for message in instruct.messages] == ["user", "assistant"] * 2 and instruct.answer == "X-ray."


@pytest.mark.parametrize("variant", ["10k", "60k_inline_mention"])
def test_variants_are_read_from_their_own_files(tmp_path, variant):
    root = build("llava_med", tmp_path / "root")
    assert len(good(LlavaMed(root.path, {"instruct": variant}), "instruct")) == 1
    (root.path / f"instruct/llava_med_instruct_{variant}.json").unlink()
    with pytest.raises(ValueError, match=f"instruct_{variant}.json is missing"):
        good(LlavaMed(root.path, {"instruct": variant}))
    assert len(good(LlavaMed(root.path, {"instruct": variant}), "alignment")) == 1


def test_one_of_the_two_files_is_enough(tmp_path, caplog):
    root = build("llava_med", tmp_path / "root").path
    (root / "alignment/llava_med_alignment_500k.json").unlink()
    with caplog.at_level("WARNING"):
        (sample,) = good(LlavaMed(root))
    assert sample.task == "llava_med/instruct" and "left out of train: alignment" in caplog.text
    with pytest.raises(ValueError, match=r"alignment_500k\.json is missing"):
        good(LlavaMed(root), "alignment")


def test_samples_whose_figure_was_never_downloaded_are_made_all_the_same(tmp_path):
    root = build("llava_med", tmp_path / "root")
    (root.path / "images/32432162_F1.jpg").unlink()
    assert len(good(LlavaMed(root.path))) == 2
