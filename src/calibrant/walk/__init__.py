"""Walking through a model: what each of its matrices sees of a batch, one after another.

`walking` is the walk itself, `micro_batch` what goes through the model, and `ranks` the processes
that share one; `rehearsal` and `products` find out how a model uses its matrices; `offloading`
keeps on disk what passes between blocks; `block_statistics` is about whole blocks, `attention`
about what tokens get in them. `statistics` keeps what an untouched model's matrices saw for those
who come later, `starving` looks after experts that get few tokens, and `variants` measures a model
without some of its blocks.
"""

from calibrant.walk.walking import (
    LONG_PASS,
    TOKENS_PER_PASS,
    held_between_blocks,
    tokens_per_pass_of,
    walk,
    walk_blocks,
)

__all__ = [
    "LONG_PASS",
    "TOKENS_PER_PASS",
    "held_between_blocks",
    "tokens_per_pass_of",
    "walk",
    "walk_blocks",
]
