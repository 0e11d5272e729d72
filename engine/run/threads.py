"""Equal thread counts in every worker: sums depend on how they are split, and equal clips must give equal bytes."""

import os
import sys

LIMITS: list[object] = []  # threadpoolctl undoes a limit when its object dies


def pin(threads: int) -> None:
    """Set the number of threads of BLAS, OpenMP, OpenCV, numba and torch in this process."""
    import cv2
    import numba
    from threadpoolctl import threadpool_limits

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)  # for libraries that are loaded later
    LIMITS[:] = [threadpool_limits(threads)]
    cv2.setNumThreads(threads)
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
