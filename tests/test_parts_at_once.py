"""Parts at once give what the same parts give one after another, and carry the caller's way of computing along."""

import threading
import time
from functools import partial

import pytest
import torch

from carrara.threads import alone, at_once, processors


def test_results_are_in_order_and_each_on_a_thread_that_computes_alone() -> None:
    before = torch.get_num_threads()

    def piece(number: int) -> tuple[int, str, int]:
        time.sleep(0.02 * (3 - number))
        return number, threading.current_thread().name, torch.get_num_threads()

    found = at_once([partial(piece, number) for number in range(3)], 3)
    assert [number for number, _, _ in found] == [0, 1, 2]
    assert len({name for _, name, _ in found}) == 3
    assert {threads for _, _, threads in found} == {1}
    assert torch.get_num_threads() == before
    assert at_once([partial(piece, 0)])[0][1] == threading.current_thread().name


@pytest.mark.parametrize("inference", [True, False])
def test_grad_mode_and_precision_go_along(inference: bool) -> None:
    weight = torch.ones(2, 2, requires_grad=True)
    with torch.inference_mode(inference), torch.autocast("cpu", torch.bfloat16):
        found = at_once([lambda: weight @ weight, lambda: weight @ weight], 2)
    assert [x.dtype for x in found] == [torch.bfloat16] * 2
    assert [x.requires_grad for x in found] == [not inference] * 2


def test_all_end_before_the_first_error_is_raised() -> None:
    ended = []

    def late() -> None:
        time.sleep(0.05)
        ended.append(True)

    def wrong() -> None:
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        at_once([wrong, late], 2)
    assert ended == [True]


def test_alone_is_for_as_long_as_it_is_entered() -> None:
    torch.set_num_threads(2)
    try:
        with alone(False):
            assert torch.get_num_threads() == 2
        with alone():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        assert processors() == 1  # as it was when this was first asked: a test's process has one
    finally:
        torch.set_num_threads(1)
