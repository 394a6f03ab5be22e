"""``python -m cba_fast.cli``."""

from .main import main

main()
