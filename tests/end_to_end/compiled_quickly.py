"""`train.py` whose encoders are compiled without a code generator, which would take a minute.

All of `torch.compile` but that is the real thing: the graphs, what they assume of shapes, their cut
at DDP's buckets, and their gradients.
"""

from __future__ import annotations

import sys

from torch import nn

from train import main

_compile = nn.Module.compile


def _without_generator(module: nn.Module) -> None:
    _compile(module, backend="aot_eager")


if __name__ == "__main__":
    nn.Module.compile = _without_generator  # type: ignore[method-assign, assignment]
    sys.exit(main())
