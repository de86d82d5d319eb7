"""`python -m minipali` is the command `minipali`."""

from minipali.cli import main

raise SystemExit(main())
