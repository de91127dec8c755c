"""Reading and writing behind kept keys equals dense attention over whole texts, written out."""

import zlib
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medmvl.model.attention import packed_attention
from medmvl.model.kept import Reading, Writing

MODULE = SimpleNamespace(is_causal=True)
LAYERS = 2


class Texts:
    """Random queries, keys and values of every token of some texts, in `LAYERS` layers; no text knows of another."""

    def __init__(self, heads, value_width, options):
        self.heads, self.widths, self.options, self.drawn = heads, (6, 6, value_width), options, {}

    def of(self, name, count, layer):
        """Tensors [H, count, D] of the first tokens of one text, the same at every call."""
        found = []
        for part, (heads, width) in enumerate(zip((self.heads[0], *2 * self.heads[1:]), self.widths, strict=True)):
            generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {layer} {part}".encode()))
            found.append(
                torch.randn(200, heads, width, generator=generator, dtype=torch.float64)[:count].transpose(0, 1)
            )
        return found

    def dense(self, path, layer):
        """What the last piece of a path of (text, tokens) sees, [tokens, H, D]: everything before it on the path."""
        query, key, value = (torch.cat(x, dim=1) for x in zip(*(self.of(*piece, layer) for piece in path), strict=True))
        repeats = query.shape[0] // key.shape[0]
        key, value = key.repeat_interleave(repeats, 0), value.repeat_interleave(repeats, 0)
        scores = query @ key.transpose(-1, -2) * self.options["scaling"]
        if (softcap := self.options["softcap"]) is not None:
            scores = softcap * torch.tanh(scores / softcap)
        steps = torch.arange(query.shape[1])
        seen = steps[:, None] >= steps
        if (window := self.options["sliding_window"]) is not None:
            seen &= steps[:, None] - steps < window
        weights = scores.masked_fill(~seen, -torch.inf).exp()
        total = weights.sum(-1, keepdim=True)
        if (sinks := self.options["s_aux"]) is not None:
            total = total + sinks.exp().view(-1, 1, 1)
        return ((weights / total) @ value)[:, -path[-1][1] :].transpose(0, 1)

    def attend(self, layout, tensors):
        return packed_attention(MODULE, *tensors, None, layout=layout, **self.options)[0]

    def read(self, paths, behind):
        """Read the last piece of each path in one row, check what it sees, and return what is kept."""
        lengths = [path[-1][1] for path in paths]
        reading = Reading(lengths, behind, torch.device("cpu"))
        before = [sum(count for _, count in path[:-1]) for path in paths]
        expected = [p for first, length in zip(before, lengths, strict=True) for p in range(first, first + length)]
        assert list(reading.positions()) == expected
        assert [sum(lengths[: run + 1]) - 1 for run in range(len(lengths))] == reading.ends
        for layer in range(LAYERS):
            pieces = [self.of(*path[-1], layer) for path in paths]
            found = self.attend(reading, [torch.cat(x, dim=1)[None] for x in zip(*pieces, strict=True)])
            close(found[0], torch.cat([self.dense(path, layer) for path in paths]))
        return reading.kept()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # softmax in fp32


OPTIONS = st.fixed_dictionaries(
    {
        "scaling": st.just(0.3),
        "sliding_window": st.sampled_from([None, 1, 4, 30]),
        "softcap": st.sampled_from([None, 2.0]),
        "s_aux": st.sampled_from([None, torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)]),
    }
)
LENGTH = st.integers(1, 24)
TREES = st.lists(st.tuples(LENGTH, st.lists(LENGTH, max_size=4)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(OPTIONS, st.sampled_from([(4, 4), (4, 2)]), st.sampled_from([6, 8]), TREES, st.data())
def test_reading_and_writing_equal_dense_attention(options, heads, value_width, trees, data):
    """Beginnings, some with branches, the branches with twigs; then all ends are written on, in ever new company."""
    texts = Texts(heads, value_width, options)
    paths = [[(f"{tree}", length)] for tree, (length, _) in enumerate(trees)]
    begun = texts.read(paths, [None] * len(paths))
    tails = [
        ([*paths[tree], (f"{tree}.{number}", length)], begun[tree])
        for tree, (_, branches) in enumerate(trees)
        for number, length in enumerate(branches)
    ]
    lines = [(path, kept) for path, kept, (_, own) in zip(paths, begun, trees, strict=True) if not own]
    if tails:
        branches = texts.read([path for path, _ in tails], [kept for _, kept in tails])
        lines += [(path, kept) for (path, _), kept in zip(tails, branches, strict=True)]
        twigs = [[*path, (f"{path[-1][0]}.", 3)] for path, _ in tails]
        for twig, kept in zip(twigs, texts.read(twigs, branches), strict=True):
            assert kept.length == sum(count for _, count in twig)
    write(texts, data.draw(st.permutations(lines)), data)


def write(texts, waiting, data):
    writing, lines = Writing(torch.device("cpu")), []
    for step in range(6):
        joining, waiting = waiting[: step + 1], waiting[step + 1 :]
        if joining:
            writing.add([kept for _, kept in joining])
            lines += [path for path, _ in joining]
        if lines:
            positions = writing.step()
            assert positions.tolist() == [[sum(count for _, count in path)] for path in lines]
            for path in lines:
                path[-1] = (path[-1][0], path[-1][1] + 1)
            for layer in range(LAYERS):
                new = [[x[:, -1:] for x in texts.of(*path[-1], layer)] for path in lines]
                found = texts.attend(writing, [torch.stack(x) for x in zip(*new, strict=True)])
                close(found[:, 0], torch.stack([texts.dense(path, layer)[-1] for path in lines]))
        over = data.draw(st.sets(st.sampled_from(range(len(lines))))) if lines else set()
        order = writing.drop(sorted(over))
        assert sorted([*order, *over]) == list(range(len(lines)))
        lines = [lines[line] for line in order]
        assert len(writing) == len(lines)


@pytest.mark.parametrize("shared", [1, 2])
def test_what_is_kept_lets_go_of_its_row(shared):
    texts = Texts((4, shared), 6, {"scaling": 0.3, "sliding_window": None, "softcap": None, "s_aux": None})
    one, other = texts.read([[("a", 5)], [("b", 7)]], [None, None])
    assert one.layers[0][0].untyped_storage().nbytes() == shared * 12 * 6 * 8
    small = one.compact()
    assert small.layers[0][0].untyped_storage().nbytes() == shared * 5 * 6 * 8
    assert small.token_bytes == one.token_bytes == LAYERS * 2 * shared * 6 * 8
    assert torch.equal(small.whole(1)[1], one.whole(1)[1])
    assert (small.length, other.length) == (5, 7)


def test_tables_shrink_when_long_lines_are_gone():
    texts = Texts((4, 2), 6, {"scaling": 0.3, "sliding_window": None, "softcap": None, "s_aux": None})
    long, short = texts.read([[("a", 150)], [("b", 3)]], [None, None])
    writing = Writing(torch.device("cpu"))
    writing.add([long, short])
    assert writing._tables[0][0].shape[2] >= 150
    writing.drop([0])
    writing.step()
    texts.attend(writing, [x[None, :, -1:] for x in texts.of("b", 4, 0)])
    assert writing._tables[0][0].shape[2] < 20


def test_attending_without_a_step_is_refused():
    texts = Texts((4, 2), 6, {"scaling": 0.3, "sliding_window": None, "softcap": None, "s_aux": None})
    with pytest.raises(RuntimeError, match="step"):
        texts.attend(Writing(torch.device("cpu")), [x[None] for x in texts.of("a", 1, 0)])
