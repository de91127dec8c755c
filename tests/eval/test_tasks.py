"""Tasks as data: the shipped ones load, wrong ones are answered with hints."""

from pathlib import Path

import pytest

from medmvl.core.config import ConfigError
from medmvl.core.lookup import LookupNameError
from medmvl.eval.task import load_tasks, task_names

FAMILIES = "plane present bright size side choice open report rec reg"


def test_the_benchmark_has_every_family() -> None:
    assert set(task_names()) >= {f"brain_atlas/{family}" for family in FAMILIES.split()}


@pytest.mark.parametrize("name", task_names())
def test_shipped_tasks_load_under_their_own_name(name: str) -> None:
    (task,) = load_tasks(name)
    assert task.name == name
    assert task.shown in task.metrics
    assert set(task.controls) == {"blank_image", "shuffled_image", "question_only", "majority"}


def test_closed_tasks_are_scored_strictly() -> None:
    for task in load_tasks("brain_atlas"):
        if task.family in ("classification", "closed", "choice"):
            assert task.metrics == ["accuracy_strict"], task.name


def test_groups_names_and_files(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        'name: mine\nversion: "2"\ntitle: Mine\nfamily: open\nsource: mine\nmetrics: [token_f1, accuracy_strict]\n'
        "primary: accuracy_strict\ncontrols: [majority]\n"
    )
    tasks = load_tasks(["brain_atlas/side", file])
    assert [task.name for task in tasks] == ["brain_atlas/side", "mine"]
    assert tasks[1].shown == "accuracy_strict"
    assert len(load_tasks("brain_atlas")) == len(FAMILIES.split())


def test_wrong_tasks_are_explained(tmp_path: Path) -> None:
    with pytest.raises(LookupNameError, match="did you mean 'brain_atlas/side'"):
        load_tasks("brain_atlas/sid")
    with pytest.raises(ValueError, match="named twice: brain_atlas/side"):
        load_tasks(["brain_atlas", "brain_atlas/side"])
    with pytest.raises(ValueError, match="no task given"):
        load_tasks([])
    file = tmp_path / "wrong.yaml"
    file.write_text(
        "name: x\nversion: 1.0\ntitle: X\nfamily: opne\nsource: x\nmetrics: [token_f1]\ngeneration: {max_tokens: 3}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_tasks(file)
    text = str(caught.value)
    for hint in ("line 2", "version", "line 4", "'open'", "line 7", "max_new_tokens"):
        assert hint in text, text
    file.write_text('name: x\nversion: "1"\ntitle: X\nfamily: open\nsource: x\nmetrics: [token_f2]\n')
    with pytest.raises((ConfigError, LookupNameError), match="did you mean 'token_f1'"):
        load_tasks(file)
    file.write_text('name: x\nversion: "1"\ntitle: X\nfamily: open\nsource: x\nmetrics: [token_f1]\nprimary: rouge\n')
    with pytest.raises(ConfigError, match="primary is not scored"):
        load_tasks(file)


def test_all_mistakes_in_names_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(
        'name: x\nversion: "1"\ntitle: X\nfamily: open\nsource: x\nmetrics: [token_f3, token_f9]\n'
        'prompt: Say it.\nparaphrases: ["Now say: {question}", Please.]\nprimary: bleu\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_tasks(file)
    text = str(caught.value)
    for hint in ("'token_f3'", "'token_f9'", "prompt: has no place", "got 'Please.'", "primary is not scored: 'bleu'"):
        assert hint in text, text
    assert text.count("rouge1_pkg") == 1
