# A killed Snakemake leaves its lock behind, and the next one would refuse to start. Every Snakemake that works here
# holds a lock of the kernel too, which dies with it: when nobody else holds that, Snakemake's own lock is a dead one's.

import fcntl
from pathlib import Path

from snakemake.settings.types import ExecMode

from lucavirus.guard import NO_LOCKS


def hold_kernel_lock() -> int:
    """A descriptor that stays open, and locked, as long as this process; dead processes' locks are cleared away."""
    folder = Path(".snakemake")
    try:
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder / "alive.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    except OSError as error:
        raise unwritable(error) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for lock in (folder / "locks").glob("*.lock"):
            lock.unlink()
    except BlockingIOError:
        pass  # another Snakemake works here; its lock is alive
    except OSError as error:  # Snakemake's own lock must do
        if error.errno not in NO_LOCKS:
            raise
        return descriptor
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


if workflow.exec_mode == ExecMode.DEFAULT and not workflow.output_settings.dryrun:
    KERNEL_LOCK = hold_kernel_lock()
