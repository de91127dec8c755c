"""Samples by what is known about them: fields of meta, a data set's own keys, attributes."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from medmvl.core.schema import Sample
from medmvl.eval.select import meta_value, meta_values, selected


def sample(number: int, **meta: Any) -> Sample:
    return Sample.from_dict({"id": str(number), "messages": [{"role": "user", "content": "?"}], "meta": meta})


SAMPLES = [
    sample(0, answer_type="closed", modality="CT", organ="lung", frames=3, attributes={"plane": "axial"}),
    sample(
        1, answer_type="open", modality="CT", organ="lung", findings=["mass", "edema"], attributes={"organ": "heart"}
    ),
    sample(2, answer_type="closed", modality="MR", evaluated=True, attributes={"plane": "coronal", "modality": "X"}),
    sample(3, choices=["yes", "no"], organ="", attributes={"organ": "brain"}),
]


@pytest.mark.parametrize(
    ("select", "ids"),
    [
        ({}, "0123"),
        ({"answer_type": "closed"}, "02"),
        ({"organ": "lung"}, "01"),
        ({"organ": ["lung", "brain"]}, "013"),
        ({"plane": "axial"}, "0"),
        ({"frames": "3"}, "0"),
        ({"findings": "edema"}, "1"),
        ({"evaluated": "true"}, "2"),
        ({"choices": "yes"}, "3"),
        ({"answer_type": "closed", "modality": ["MR", "CT"], "plane": "coronal"}, "2"),
    ],
)
def test_selected(select: Mapping[str, str | Sequence[str]], ids: str) -> None:
    assert "".join(one.id for one in selected(SAMPLES, select)) == ids


@pytest.mark.parametrize(
    ("select", "told"),
    [
        ({"answer_typ": "closed"}, "under 'answer_typ'; did you mean 'answer_type'"),
        ({"organ": "lungs"}, "select.organ: no sample has 'lungs'; did you mean 'lung'? Values: brain, lung"),
        ({"organ": ["lung", "liver"]}, "no sample has 'liver'"),
        ({"organ": "heart"}, "no sample has 'heart'"),  # what a field says goes before attributes
        ({"modality": "MR", "organ": "lung"}, "all that is asked for at once (modality: MR, organ: lung)"),
        ({"boxes": "1"}, "no sample says anything under 'boxes'"),
    ],
)
def test_what_no_sample_has_is_told_with_the_nearest(select: Mapping[str, str | Sequence[str]], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        list(selected(SAMPLES, select))
    assert told in str(caught.value)


def test_values_of_an_id_are_not_listed_by_the_thousand() -> None:
    samples = [sample(number, patient=f"p{number:05d}") for number in range(12_000)]
    with pytest.raises(ValueError, match=r"did you mean 'p00042'.* and others") as caught:
        list(selected(samples, {"patient": "p_00042"}))
    assert len(str(caught.value)) < 500
    assert [one.id for one in selected(samples, {"patient": "p11999"})] == ["11999"]


def test_values_as_texts() -> None:
    assert meta_value(SAMPLES[1], "findings") == "mass, edema"
    assert meta_values(SAMPLES[3], "organ") == ("brain",)
    assert meta_value(SAMPLES[0], "nothing") == ""
