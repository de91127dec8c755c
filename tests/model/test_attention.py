"""The attention function against dense attention written out, over random rows, and in the cache."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_rows import dense, dense_mask, draw_tensors, layouts
from medmvl.core.layout import Layout, Segment
from medmvl.model import attention
from medmvl.model.attention import packed_attention

MODULE = SimpleNamespace(is_causal=True)


@settings(max_examples=60, deadline=None)
@given(
    layouts(),
    st.sampled_from([None, 1, 3, 10, 50]),
    st.sampled_from([None, 2.0]),
    st.booleans(),
    st.sampled_from([(4, 4), (4, 2), (3, 1)]),
    st.sampled_from([6, 8]),
)
def test_rows_equal_dense_attention(layout, window, softcap, with_sinks, heads, value_width):
    tensors = draw_tensors(layout.length, *heads, value_width=value_width)
    sinks = torch.randn(heads[0], dtype=torch.float64, requires_grad=True) if with_sinks else None
    inputs = [*tensors, sinks] if with_sinks else tensors
    found, weights = packed_attention(
        MODULE, *tensors, None, scaling=0.3, sliding_window=window, softcap=softcap, s_aux=sinks, layout=layout
    )
    expected = dense(*tensors, dense_mask(layout, window), 0.3, softcap, sinks)
    assert weights is None
    tolerance = {"rtol": 1e-5, "atol": 1e-6}  # softcap and sinks take their softmax in fp32
    torch.testing.assert_close(found, expected, **tolerance)
    direction = torch.randn_like(expected)
    for own, other in zip(
        torch.autograd.grad(found, inputs, direction), torch.autograd.grad(expected, inputs, direction), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 3])
def test_without_a_layout_it_is_plain_causal_attention(window):
    query, key, value = draw_tensors(8, batch=2)
    mask = dense_mask(Layout((Segment(0, 8),)), window)
    expected = dense(query, key, value, mask, 6**-0.5)
    found, _ = packed_attention(MODULE, query, key, value, None, sliding_window=window)
    torch.testing.assert_close(found, expected)
    last, _ = packed_attention(MODULE, query[:, :, -3:], key, value, None, sliding_window=window)
    torch.testing.assert_close(last, expected[:, -3:])


def test_branches_do_not_see_each_other_and_padding_never_leaks():
    """A not-a-number in one branch stays in that branch, bit for bit."""
    layout = Layout((Segment(0, 4), Segment(4, 7, 0, 4), Segment(7, 12, 0, 4), Segment(12, 15), Segment(15, 30)))
    query, key, value = (x.detach() for x in draw_tensors(30))
    before, _ = packed_attention(MODULE, query, key, value, None, layout=layout)
    value[:, :, 5] = torch.nan
    after, _ = packed_attention(MODULE, query, key, value, None, layout=layout)
    changed = torch.isnan(after).any(dim=-1).any(dim=-1)[0]
    assert changed[5:7].all()
    untouched = torch.cat([torch.arange(4), torch.arange(7, 30)])
    assert torch.equal(after[:, untouched], before[:, untouched])


def test_dropout_acts_in_every_path():
    layout = Layout((Segment(0, 4), Segment(4, 7, 0, 4)))
    tensors = draw_tensors(7)
    for softcap in (None, 5.0):
        plain, _ = packed_attention(MODULE, *tensors, None, softcap=softcap, layout=layout)
        dropped, _ = packed_attention(MODULE, *tensors, None, softcap=softcap, dropout=0.9, layout=layout)
        assert not torch.allclose(plain, dropped)


def test_a_row_planned_in_inference_mode_can_be_trained_on():
    layout = Layout((Segment(0, 5), Segment(5, 9, 0, 5), Segment(9, 12, 0, 5)))
    with torch.inference_mode():
        packed_attention(MODULE, *draw_tensors(12), None, layout=layout, sliding_window=3)
    tensors = draw_tensors(12)
    packed_attention(MODULE, *tensors, None, layout=layout, sliding_window=3)[0].sum().backward()
    assert tensors[0].grad is not None


def test_refuses_what_it_would_get_wrong():
    layout = Layout((Segment(0, 4), Segment(4, 8, 0, 4)))
    tensors = draw_tensors(8)
    with pytest.raises(ValueError, match="causal"):
        packed_attention(MODULE, *tensors, torch.ones(8, 8), layout=layout)
    with pytest.raises(ValueError, match="causal"):
        packed_attention(SimpleNamespace(is_causal=False), *tensors, None, layout=layout)
    with pytest.raises(ValueError, match="layout of 8 tokens"):
        packed_attention(MODULE, *draw_tensors(9), None, layout=layout)
    with pytest.raises(ValueError, match="mask with zeros"):
        attention._no_mask(attention_mask=torch.tensor([[0, 1, 1]]))
    assert attention._no_mask(attention_mask=torch.ones(1, 3)) is None
