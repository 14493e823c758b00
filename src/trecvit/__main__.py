"""`python -m trecvit` is `trecvit`."""

from trecvit.cli import main

main()
