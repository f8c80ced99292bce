"""`python -m calibrant`, which is also what torchrun starts: `torchrun --nproc-per-node 2 -m
calibrant prune …`.
"""

from calibrant.cli import main

if __name__ == "__main__":
    main()
