"""TPUs' attention kernel on a CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

from jaxrl_lm.models import attention_kernels


@contextmanager
def splash_attention() -> Iterator[None]:
    """Programs that are traced inside compute attention of rows of every length by the kernel, interpreted."""
    with pytest.MonkeyPatch.context() as patch:
        make = partial(splash_attention_kernel.make_splash_mha, interpret=True)
        patch.setattr(splash_attention_kernel, "make_splash_mha", make)
        patch.setattr(attention_kernels, "choose", lambda *_: "splash")
        yield
