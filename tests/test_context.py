"""Context: roles by name, chosen a picture at a time, joined, stacked."""

import pytest
import torch

from carrara.context import Context
from carrara.tensors import generator


def context(seed: int, b: int = 3, *, image: bool = False) -> Context:
    draw = generator(seed)
    return Context(
        tokens=torch.randn(b, 4, 6, generator=draw),
        mask=torch.rand(b, 4, generator=draw) > 0.5,
        vector=torch.randn(b, 5, generator=draw),
        image=torch.randn(b, 2, 3, 3, generator=draw) if image else None,
    )


def test_roles_are_those_that_are_filled() -> None:
    assert Context().roles() == {}
    assert context(1).roles().keys() == {"tokens", "mask", "vector"}
    assert context(1, image=True).roles().keys() == {"tokens", "mask", "vector", "image"}


def test_where_chooses_by_picture() -> None:
    a, b = context(1, image=True), context(2, image=True)
    mixed = a.where(torch.tensor([True, False, True]), b).roles()
    for name, value in mixed.items():
        assert torch.equal(value[0], a.roles()[name][0])
        assert torch.equal(value[1], b.roles()[name][1])
        assert torch.equal(value[2], a.roles()[name][2])
    with pytest.raises(ValueError, match="different roles"):
        a.where(torch.tensor([True] * 3), Context(vector=torch.zeros(3, 5)))


def test_join_puts_both_side_by_side() -> None:
    a, b = context(1, image=True), context(2, image=True)
    joined = a.join(b)
    shapes = {name: tuple(value.shape) for name, value in joined.roles().items()}
    assert shapes == {"tokens": (3, 8, 6), "mask": (3, 8), "vector": (3, 10), "image": (3, 4, 3, 3)}
    assert joined.tokens is not None
    assert b.tokens is not None
    assert torch.equal(joined.tokens[:, 4:], b.tokens)
    assert Context().join(a).roles().keys() == a.roles().keys()
    only = Context(vector=torch.ones(3, 2)).join(Context(tokens=torch.ones(3, 1, 6)))
    assert only.roles().keys() == {"vector", "tokens"}


def test_stack_is_one_batch_in_order() -> None:
    a, b = context(1), context(2, b=2)
    both = Context.stack([a, b])
    for name, value in both.roles().items():
        assert torch.equal(value, torch.cat([a.roles()[name], b.roles()[name]]))


def test_to_moves_every_role() -> None:
    moved = context(1, image=True).to("meta")
    assert {value.device.type for value in moved.roles().values()} == {"meta"}
    assert moved.roles().keys() == {"tokens", "mask", "vector", "image"}


def test_a_context_remembers_only_where_it_is_told_to() -> None:
    context, owner, calls = Context(tokens=torch.ones(1, 2, 3)), object(), []
    for c, times in ((context, 2), (context.remembering(), 1)):
        calls.clear()
        assert [c.once(owner, lambda: calls.append(1) or len(calls)) for _ in range(2)][-1] == times
    remembered = context.remembering()
    assert remembered.once(owner, lambda: "a") == remembered.once(owner, lambda: "b") == "a"
    assert remembered.once(object(), lambda: "b") == "b"
    assert remembered.roles().keys() == {"tokens"}
    assert remembered.to("cpu").once(owner, lambda: "c") == "c", "what moved is another context"
