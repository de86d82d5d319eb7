"""Torch's settings while a model answers on a CPU; `benchmarks/` measures what they bring."""

import contextlib
import threading
from collections.abc import Iterator

import torch

from minipali.config import TextConfig

# A call with fewer multiplications than this runs on one thread. To wake another takes longer than
# it saves, and many times as long while other programs keep the processor busy.
SMALL_CALL = 2**26

# Whether torch uses oneDNN is one setting for all threads, so they change it one after another.
_onednn = threading.Lock()


@contextlib.contextmanager
def suited_to(config: TextConfig, dtype: torch.dtype, tokens: int) -> Iterator[None]:
    """Within it torch is set for a call of such a decoder with so many tokens, all rows together.

    dtype: of its weights. Numbers may change in their last digits, as with the number of threads.
    """
    heads = 2 * (config.num_attention_heads + config.num_key_value_heads) * config.head_dim
    rows = config.num_hidden_layers * (heads + 3 * config.intermediate_size) + config.vocab_size
    multiplications = tokens * rows * config.hidden_size
    with contextlib.ExitStack() as settings:
        if multiplications < SMALL_CALL:
            settings.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        if tokens == 1 and dtype == torch.bfloat16:
            settings.enter_context(without_onednn())
        yield


@contextlib.contextmanager
def without_onednn() -> Iterator[None]:
    """That library reads bfloat16 weights for a single row at two thirds of torch's own speed."""
    with _onednn:
        before, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, False
        try:
            yield
        finally:
            torch.backends.mkldnn.enabled = before
