"""Memory that is used again once no tensor refers to it, and never before."""

from concurrent.futures import ThreadPoolExecutor

import torch

from gonio.adapters.buffers import RecycledBuffers


def test_memory_returns_once_the_last_view_is_gone():
    buffers = RecycledBuffers()
    whole = buffers.take(1 << 16)
    whole.fill_(7)
    address = whole.data_ptr()
    view = whole[64:128].view(torch.float32).view(4, 4).mT
    del whole
    other = buffers.take(1 << 16)
    assert other.data_ptr() != address
    other.fill_(1)
    assert view.view(torch.int32).unique().tolist() == [0x07070707]
    del view
    assert buffers.take(1 << 16).data_ptr() == address


def test_smaller_files_use_larger_buffers_and_never_the_other_way():
    buffers = RecycledBuffers()
    first = buffers.take(1000)
    address = first.data_ptr()
    del first
    small = buffers.take(10)
    assert (small.data_ptr(), len(small)) == (address, 10)
    del small
    large = buffers.take(5000)
    assert len(large) == 5000
    large.fill_(1)
    assert int(large.sum()) == 5000
    assert len(buffers.take(0)) == 0


def test_no_more_than_asked_for_is_kept():
    buffers = RecycledBuffers(keep=1)
    taken = [buffers.take(100) for _ in range(5)]
    assert len({tensor.data_ptr() for tensor in taken}) == 5
    taken.clear()
    assert len(buffers._unused) == 1


def test_threads_never_share_a_buffer():
    buffers = RecycledBuffers(keep=4)

    def use(number):
        tensor = buffers.take(4096)
        tensor.fill_(number)
        return all(int(tensor.min()) == number == int(tensor.max()) for _ in range(5))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(use, [number % 200 for number in range(400)]))
