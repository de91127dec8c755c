"""Every back end of attention against SDPA's, and against dense attention written out."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_rows import dense, dense_mask, draw_tensors, layouts
from medmvl.core.layout import Layout, Segment
from medmvl.model import attention, backends
from medmvl.model.backends import BACKENDS, Blocked, Masked, Options, Varlen, choose

OTHERS = sorted(BACKENDS.keys() - {"sdpa"})
CPU = torch.device("cpu")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def varlen_written_out(
    query, key, value, cut_queries, cut_keys, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
):
    """What torch documents of `varlen_attn`: runs end to end, causal ones aligned at their ends."""
    assert enable_gqa == (query.shape[1] != key.shape[1]) and window_size[1] == 0
    queries, keys = (list(pairwise(cut.tolist())) for cut in (cut_queries, cut_keys))
    runs = [(*q, *k) for q, k in zip(queries, keys, strict=True)]
    assert max_q == max(b - a for a, b, _, _ in runs) and max_k == max(d - c for _, _, c, d in runs)
    outs = []
    for a, b, c, d in runs:
        behind = torch.arange(d - c - (b - a), d - c)[:, None] - torch.arange(d - c)
        mask = (behind >= 0) & (behind <= (window_size[0] if window_size[0] >= 0 else d))
        q, k, v = (x.transpose(0, 1)[None] for x in (query[a:b], key[c:d], value[c:d]))
        outs.append(dense(q, k, v, mask, q.shape[-1] ** -0.5 if scale is None else scale)[0])
    return torch.cat(outs)


@pytest.fixture
def written_out(monkeypatch):
    monkeypatch.setattr(backends, "varlen_attention", lambda: varlen_written_out)


ROWS = {
    "layout": layouts(),
    "window": st.sampled_from([None, 1, 3, 10, 50]),
    "heads": st.sampled_from([(4, 4), (4, 2), (3, 1)]),
}


@pytest.mark.usefixtures("written_out")
@settings(max_examples=40, deadline=None)
@given(**ROWS)
def test_varlen_equals_dense_attention(layout, window, heads):
    tensors = draw_tensors(layout.length, *heads)
    found = Varlen(layout, CPU).attend(*tensors, window, Options(0.3))
    expected = dense(*tensors, dense_mask(layout, window), 0.3)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(expected)
    for own, other in zip(
        torch.autograd.grad(found, tensors, direction), torch.autograd.grad(expected, tensors, direction), strict=True
    ):
        torch.testing.assert_close(own, other)


@settings(max_examples=40, deadline=None)
@given(**ROWS, softcap=st.sampled_from([None, 2.0]), block=st.sampled_from([8, 128]))
def test_masked_equals_dense_attention(layout, window, heads, softcap, block):
    """With blocks smaller than rows too. Not compiled, and without gradients, which PyTorch does not have on CPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "_BLOCK", block)
        tensors = [x.detach() for x in draw_tensors(layout.length, *heads, width=8, value_width=8)]
        row = Masked(layout, CPU)
        found = row.attend(*tensors, window, Options(0.3, softcap=softcap))
    expected = dense(*tensors, dense_mask(layout, window), 0.3, softcap)
    torch.testing.assert_close(found, expected)


@settings(max_examples=60, deadline=None)
@given(layouts(), st.sampled_from([None, 1, 3, 10, 50]))
def test_no_block_with_a_visible_pair_is_left_out(layout, window):
    """The map of blocks, not only the rule: a compiled kernel never looks into a block that is not on it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backends, "_BLOCK", 8)
        mask = Masked(layout, CPU)._mask(window)
    listed = mask.to_dense()[0, 0].bool()
    shown = dense_mask(layout, window).nonzero() // 8
    assert listed[shown[:, 0], shown[:, 1]].all()
    assert listed.sum() <= len({tuple(pair) for pair in (dense_mask(layout, None).nonzero() // 8).tolist()})


@pytest.mark.usefixtures("written_out")
@pytest.mark.parametrize("backend", BACKENDS.values())
@pytest.mark.parametrize("window", [None, 4])
def test_reading_on_from_kept_keys_is_the_end_of_the_whole_row(backend, window):
    prefixes = (Segment(0, 5), Segment(5, 12))
    layout = Layout((*prefixes, Segment(12, 15, 5, 12), Segment(15, 21, 0, 5), Segment(21, 25), Segment(25, 27, 0, 5)))
    tensors = [x.detach() for x in draw_tensors(27, width=8, value_width=8)]
    whole = Blocked(layout, CPU).attend(*tensors, window, Options())
    query, key, value = (x[:, :, 12:] for x in tensors)
    kept = tuple([x[:, :, s.start : s.end] for s in prefixes] for x in tensors[1:])
    found = backend(layout, CPU, kept=2).attend(query, key, value, window, Options(), kept)
    torch.testing.assert_close(found, whole[:, 12:])


def test_sdpa_is_what_a_cpu_has():
    query = torch.randn(1, 4, 8, 16)
    for options in (Options(), Options(softcap=3.0), Options(dropout=0.1), Options(sinks=torch.randn(4))):
        assert choose(query, query, options) is Blocked
        assert choose(query.bfloat16(), query.bfloat16(), options) is Blocked


@gpu
@pytest.mark.gpu
def test_a_gpu_has_the_back_end_that_its_tensors_allow():
    query = torch.randn(1, 4, 8, 16, device="cuda")
    half = backends.varlen_attention() is not None and torch.cuda.get_device_capability() >= (8, 0)
    assert choose(query.bfloat16(), query.bfloat16(), Options()) is (Varlen if half else Masked)
    assert choose(query, query, Options()) is Masked
    assert choose(query.bfloat16(), query.bfloat16(), Options(softcap=3.0)) is Masked
    assert choose(query, query, Options(dropout=0.1)) is Blocked
    assert choose(query, query, Options(sinks=torch.randn(4))) is Blocked
    assert choose(query.bfloat16(), query[..., :8].bfloat16(), Options()) is Blocked


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 50])
@pytest.mark.parametrize("name", OTHERS)
def test_back_ends_equal_sdpa_on_a_gpu(name, window):
    layout = Layout((Segment(0, 300), Segment(300, 340, 0, 300), Segment(340, 500, 0, 300), Segment(500, 700)))
    cuda = torch.device("cuda")
    exact = [x.detach().float().to(cuda).requires_grad_() for x in draw_tensors(700, 4, 2, 64, 64)]
    expected = Blocked(layout, cuda).attend(*exact, window, Options())
    own = [x.detach().bfloat16().requires_grad_() for x in exact] if name == "flash" else exact
    found = BACKENDS[name](layout, cuda).attend(*own, window, Options())
    direction = torch.randn_like(expected)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if name == "flash" else {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(found.float(), expected, **tolerance)
    for a, b in zip(
        torch.autograd.grad(found, own, direction.to(found.dtype)),
        torch.autograd.grad(expected, exact, direction),
        strict=True,
    ):
        torch.testing.assert_close(a.float(), b, **tolerance)


@pytest.mark.usefixtures("written_out")
def test_what_comes_back_to_a_prefix_is_added_up_in_fp32():
    """Many branches in half precision: rounding after every addition would lose the small ones."""
    branches = 600
    segments = [Segment(0, 1), *(Segment(1 + i, 2 + i, 0, 1) for i in range(branches))]
    tensors = [torch.ones(1, 1, branches + 1, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    out = Varlen(Layout(tuple(segments)), CPU).attend(*tensors, None, Options())
    (gradient,) = torch.autograd.grad(out.sum(), tensors[2])
    assert float(gradient[0, 0, 0, 0]) == pytest.approx(1 + branches / 2, rel=0.01)


def test_under_autocast_all_tensors_have_the_half_precision_that_flash_attention_needs(monkeypatch):
    """Rotary embeddings give fp32 queries beside bf16 values."""
    seen = []
    monkeypatch.setattr(attention, "choose", lambda *given: seen.extend(x.dtype for x in given[:2]) or Blocked)
    layout = Layout((Segment(0, 4), Segment(4, 8, 0, 4)))
    query, key, value = (x.detach().float() for x in draw_tensors(8))
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = attention.packed_attention(
            SimpleNamespace(is_causal=True), query, key, value.bfloat16(), None, layout=layout
        )
    assert seen == [torch.bfloat16, torch.bfloat16]
    assert found.dtype == torch.bfloat16
