"""Stands in for SGLang's compiled kernels, which are not built for CPUs on PyPI.

With them absent as operators of torch, SGLang runs its plain PyTorch paths. One function it imports and calls all the
same: it notes in which slots of the cache the new tokens of each request lie.
"""


def assign_req_to_token_pool_cpu(request_rows, table, starts, ends, slots, *_):
    """Write each request's next `end - start` of `slots`, int64[n], into columns `start:end` of its row of `table`."""
    lengths = (ends - starts).tolist()
    for row, start, part in zip(request_rows.tolist(), starts.tolist(), slots.split(lengths), strict=True):
        table[row, start : start + len(part)] = part.to(table.dtype)


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*_args, **_kwargs):
        raise NotImplementedError(f"sgl_kernel.{name} is not there on a CPU")

    return missing
