"""``python -m cba_fast``, which is ``cba-fast``; ``torchrun -m cba_fast`` starts several of it."""

from .cli.main import main

main()
