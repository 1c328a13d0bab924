"""The processes of a cohort: this one, or Dask's on this machine or on a cluster.

Each gives the cases' rows in the order in which they are done. Only a few cases are handed out at a time, and what is
done leaves nothing but a short line behind, so thousands of inputs need no more memory than a few.
"""

from __future__ import annotations

import importlib.util
import itertools
import logging
import os
import queue
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

from MedCLIPSAMLib import cohort_worker
from MedCLIPSAMLib.errors import CancelledError, InputError, MedCLIPSAMError

if TYPE_CHECKING:
    from distributed import Client, Future

logger = logging.getLogger(__name__)

Task = Mapping[str, Any]
Rows = list[dict[str, Any]]
_WAIT = 0.2  # seconds between two questions whether the run is cancelled
_DEATHS = 10  # so many processes may end under a task before Dask gives it up; it blames tasks that only waited, too
_CONNECTING = 20.0  # seconds
_DESERTED = 300.0  # seconds without any process after which a run on this machine gives up
_LOCAL = {
    "distributed.scheduler.allowed-failures": _DEATHS,
    # A process that is being started again for so long would be taken off the cluster for good; it may take long.
    "distributed.deploy.lost-worker-timeout": "100 days",
    "distributed.scheduler.http.routes": [],  # no pages for a browser
    "distributed.worker.http.routes": [],
}


class Processes(Protocol):
    """What segments the cases."""

    def describe(self, settings: Mapping[str, Any], cancelled: Callable[[], bool] | None) -> dict[str, Any]:
        """Return :func:`MedCLIPSAMLib.cohort_worker.describe_engine` of one of the processes."""

    def segment(self, tasks: Iterator[Task], cancelled: Callable[[], bool] | None) -> Iterator[Rows]:
        """Yield the rows of :func:`MedCLIPSAMLib.cohort_worker.segment_case` of each task, in any order."""


class ThisProcess:
    """Segments one case after another; needs no Dask."""

    def describe(self, settings: Mapping[str, Any], cancelled: Callable[[], bool] | None) -> dict[str, Any]:
        """See :class:`Processes`."""
        return cohort_worker.describe_engine(settings)

    def segment(self, tasks: Iterator[Task], cancelled: Callable[[], bool] | None) -> Iterator[Rows]:
        """See :class:`Processes`."""
        with _one_thread():
            for task in tasks:
                check_cancelled(cancelled)
                yield cohort_worker.segment_case(task, cancelled)


class DaskProcesses:
    """Segments on the workers of a Dask scheduler."""

    def __init__(self, client: Client, shared_folder: bool):
        """Take a client; ``shared_folder`` says that the workers may be on other machines."""
        self._client = client
        self._shared_folder = shared_folder

    def describe(self, settings: Mapping[str, Any], cancelled: Callable[[], bool] | None) -> dict[str, Any]:
        """See :class:`Processes`."""
        waited = False
        while not self._client.ncores():
            check_cancelled(cancelled)
            if not waited:
                logger.warning("Waiting for a worker at %s.", self._client.scheduler.address)
            waited = True
            with suppress(TimeoutError):
                self._client.wait_for_workers(1, timeout=1)
        return self._only(self._client.submit(cohort_worker.describe_engine, dict(settings), pure=False), cancelled)

    def segment(self, tasks: Iterator[Task], cancelled: Callable[[], bool] | None) -> Iterator[Rows]:
        """See :class:`Processes`."""
        arrived: queue.SimpleQueue[Future] = queue.SimpleQueue()
        flying: dict[str, tuple[Task, int]] = {}

        def hand_out(task: Task, turn: int) -> None:
            key = f"cohort-{task['run']}-{task['case']['name']}-{turn}"
            future = self._client.submit(cohort_worker.segment_case, dict(task), key=key, pure=False)
            flying[key] = task, turn
            futures[key] = future  # Dask forgets a task that nobody holds
            future.add_done_callback(arrived.put)

        futures: dict[str, Future] = {}
        first = next(tasks, None)
        if first is None:
            return
        if self._shared_folder:
            check = self._client.submit(cohort_worker.check_process, first["output"], first["run"], pure=False)
            self._only(check, cancelled)
        waiting = itertools.chain([first], tasks)
        seen = time.monotonic()
        try:
            while True:
                seen = time.monotonic() if self._threads() else seen
                if not self._shared_folder and time.monotonic() - seen > _DESERTED:
                    raise MedCLIPSAMError(
                        "the processes end as soon as they are started; try --workers 1, which tells why."
                    )
                for task in itertools.islice(waiting, max(0, self._at_once() - len(flying))):
                    hand_out(task, 1)
                if not flying:
                    return
                check_cancelled(cancelled)
                with suppress(queue.Empty):
                    future = arrived.get(timeout=_WAIT)
                    task, turn = flying.pop(future.key)
                    del futures[future.key]
                    rows = self._result(future)
                    del future
                    if rows is not None:
                        yield rows
                    else:  # given up by Dask; the case itself counts how often it was begun
                        hand_out(task, turn + 1)
        finally:
            with suppress(OSError, RuntimeError):
                self._client.cancel(list(futures.values()))

    def _at_once(self) -> int:
        """Return how many cases to have handed out: one at work and one waiting for each thread."""
        return 2 * max(1, self._threads())

    def _threads(self) -> int:
        """Return how many threads there are at the moment, on all workers."""
        try:
            return sum(self._client.ncores().values())
        except (OSError, RuntimeError):  # no connection at the moment
            return 0

    def _result(self, future: Future) -> Rows | None:
        from distributed import KilledWorker

        try:
            return _result(future)
        except KilledWorker:
            return None

    def _only(self, future: Future, cancelled: Callable[[], bool] | None) -> Any:
        from distributed import KilledWorker

        arrived: queue.SimpleQueue[Future] = queue.SimpleQueue()
        future.add_done_callback(arrived.put)
        while True:
            check_cancelled(cancelled)
            with suppress(queue.Empty):
                arrived.get(timeout=_WAIT)
                break
        try:
            return _result(future)
        except KilledWorker as error:
            raise MedCLIPSAMError(
                "the processes end while they load the engine, perhaps for lack of memory; try fewer (--workers 1)."
            ) from error


def _result(future: Future) -> Any:
    from distributed import CancelledError as Gone

    try:
        return future.result()
    except Gone as error:
        raise MedCLIPSAMError(
            "the Dask scheduler is gone; start it and this command again: what is done is kept."
        ) from error


@contextmanager
def processes(workers: int, scheduler: str | None) -> Iterator[Processes]:
    """Yield what segments the cases; at the end processes that were started here are gone.

    Args:
        workers: Processes on this machine with one thread each; 1 is this process.
        scheduler: Address of a running Dask scheduler, whose workers are taken instead; or None.

    Raises:
        InputError: Dask is not installed.
        MedCLIPSAMError: There is no scheduler at the address.
    """
    if scheduler is None and workers == 1:
        yield ThisProcess()
        return
    if importlib.util.find_spec("distributed") is None:
        raise InputError(
            "several processes need the package distributed (pip install distributed), or pass --workers 1."
        )
    with ExitStack() as stack:
        cluster = scheduler if scheduler is not None else stack.enter_context(_local_cluster(workers))
        from distributed import Client

        try:
            client = stack.enter_context(Client(cluster, timeout=_CONNECTING, set_as_default=False))
        except (OSError, ValueError, ImportError) as error:  # ValueError: not an address
            raise MedCLIPSAMError(
                f"there is no Dask scheduler at {scheduler!r} ({error}); pass its address, for example "
                "tcp://192.168.1.5:8786."
            ) from error
        yield DaskProcesses(client, scheduler is not None)


@contextmanager
def _local_cluster(workers: int) -> Iterator[Any]:
    import dask
    from distributed import LocalCluster

    encrypted = importlib.util.find_spec("cryptography") is not None
    if not encrypted:
        logger.warning(
            "Other users of this machine could reach the processes; pip install cryptography closes them (TLS)."
        )
    with (
        tempfile.TemporaryDirectory(prefix="medclipsam-cohort-", ignore_cleanup_errors=True) as scratch,
        dask.config.set(_LOCAL | {"temporary-directory": scratch}),
        _quiet("distributed"),
        same_environment(),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            memory_limit=0,  # models are larger than Dask's share; what a case needs is bounded
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},  # not a port that another program may have
            security=encrypted or None,
            silence_logs=logging.ERROR,
            preload=[cohort_worker.__name__],
        ) as cluster,
    ):
        yield cluster


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Let a library log errors only, unless the program's own messages are wanted, too (``--verbose``)."""
    log = logging.getLogger(name)
    before = log.level
    if not logger.isEnabledFor(logging.INFO):
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


@contextmanager
def same_environment() -> Iterator[None]:
    """Take back what Dask sets for its processes (OMP_NUM_THREADS and more), which it sets in this one."""
    import dask

    names = ["PYTHONHASHSEED", "__DASK_PARENT_PID", *dask.config.get("distributed.nanny.pre-spawn-environ")]
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let the models of this process use one thread, as in Dask's processes, so that sums come out the same."""
    torch = sys.modules.get("torch")
    with ExitStack() as stack:
        if torch:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
        with suppress(ImportError):  # numpy's own threads, where they can be told
            from threadpoolctl import threadpool_limits

            stack.enter_context(threadpool_limits(1))
        yield


def check_cancelled(cancelled: Callable[[], bool] | None) -> None:
    """Raise :class:`CancelledError` if ``cancelled`` says so."""
    if cancelled is not None and cancelled():
        raise CancelledError("The run was cancelled; what is done is kept.")
