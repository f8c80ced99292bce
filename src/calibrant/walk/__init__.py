"""Walking through a model: what each of its matrices sees of a batch, one after another.

`walking` is the walk itself, `micro_batch` what goes through the model, and `ranks` the processes that share one; `rehearsal` and `products` find out
how a model uses its matrices; `offloading` keeps on disk what passes between blocks; `block_statistics` is about whole blocks, `attention` about what
tokens get in them; `observing` and `statistics` keep what an untouched model's matrices saw for those who come later.
"""

from calibrant.walk.walking import TOKENS_PER_PASS, Propagation, held_between_blocks, walk, walk_blocks

__all__ = ["TOKENS_PER_PASS", "Propagation", "held_between_blocks", "walk", "walk_blocks"]
