"""torchrun, which a signal ends with that signal's exit status instead of a traceback."""

from __future__ import annotations

import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.run import main

if __name__ == "__main__":
    try:
        main()
    except SignalException as ended:
        sys.exit(128 + ended.sigval)
