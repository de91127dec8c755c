"""Random packed rows, and attention over them written out token by token."""

import torch
from hypothesis import strategies as st

from medmvl.core.layout import Layout, Segment


@st.composite
def layouts(draw):
    segments, cursor = [], 0
    for branches in draw(st.lists(st.lists(st.integers(1, 40), max_size=4), min_size=1, max_size=5)):
        start, end = cursor, cursor + draw(st.integers(1, 60))
        segments.append(Segment(start, end))
        cursor = end
        for length in branches:
            segments.append(Segment(cursor, cursor + length, start, end))
            cursor += length
    return Layout(tuple(segments))


def dense_mask(layout, window):
    """[T, T] written down token by token: what the fast path must equal."""
    positions = torch.tensor(list(layout.positions()))
    seen = torch.zeros(layout.length, layout.length, dtype=torch.bool)
    for s in layout.segments:
        seen[s.start : s.end, s.prefix_start : s.prefix_end] = True
        seen[s.start : s.end, s.start : s.end] = torch.ones(s.length, s.length, dtype=torch.bool).tril()
    if window is not None:
        seen &= positions[:, None] - positions < window
    return seen


def dense(query, key, value, mask, scaling, softcap=None, sinks=None):
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(-1, -2) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~mask, -torch.inf).exp()
    total = weights.sum(-1, keepdim=True) + (0 if sinks is None else sinks.exp().view(1, -1, 1, 1))
    return ((weights / total) @ value).transpose(1, 2)


def draw_tensors(tokens, heads=4, shared=2, width=6, value_width=6, batch=1):
    torch.manual_seed(tokens)
    shapes = [(batch, heads, tokens, width), (batch, shared, tokens, width), (batch, shared, tokens, value_width)]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
