"""Workers by name, for the command line; in Python `joblib.parallel_config` does the same."""

from collections.abc import Iterator
from contextlib import contextmanager

from certify.errors import InvalidInputError, MissingDependencyError

BACKENDS = ("loky", "threading", "dask", "ray")
# Seconds that a cluster may take to give the first worker.
_PATIENCE = 60


@contextmanager
def parallel_backend(name: str | None, *, n_jobs: int | None, scheduler: str | None = None) -> Iterator[None]:
    """While it is open, joblib runs jobs on these workers.

    Args:
        name: one of `BACKENDS`; None leaves joblib as it is configured.
        n_jobs: workers of a cluster that is started here.
        scheduler: address of a Dask scheduler or a Ray head node; without one a cluster of this machine is started.

    Raises:
        MissingDependencyError: where Dask or Ray is not installed.
        InvalidInputError: for another name, or a scheduler without a cluster.
    """
    if name is not None and name not in BACKENDS:
        raise InvalidInputError(f"the backend is {name!r}; expected one of {', '.join(BACKENDS)}")
    if scheduler is not None and name not in ("dask", "ray"):
        raise InvalidInputError(f"a scheduler ({scheduler}) is for the backends dask and ray; the backend is {name}")
    if name is None:
        yield
        return
    from joblib import parallel_config

    clusters = {"dask": _dask, "ray": _ray}
    with clusters[name](n_jobs, scheduler) if name in clusters else parallel_config(backend=name, n_jobs=n_jobs):
        yield


@contextmanager
def _dask(n_jobs: int | None, scheduler: str | None) -> Iterator[None]:
    from joblib import cpu_count, parallel_config

    try:
        from distributed import Client
    except ImportError as error:
        raise MissingDependencyError(
            "the backend dask needs Dask; install it with pip install 'convexnn[distributed]'"
        ) from error
    own = {"n_workers": n_jobs if n_jobs and n_jobs > 0 else cpu_count(), "threads_per_worker": 1}
    client = Client(scheduler) if scheduler else Client(dashboard_address=None, **own)
    with client, parallel_config(backend="dask", wait_for_workers_timeout=_PATIENCE):
        yield


@contextmanager
def _ray(n_jobs: int | None, scheduler: str | None) -> Iterator[None]:
    from joblib import parallel_config

    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise MissingDependencyError(
            "the backend ray needs Ray; install it with pip install 'convexnn[distributed]'"
        ) from error
    register_ray()
    ray.init(address=scheduler, num_cpus=None if scheduler else n_jobs, include_dashboard=False)
    try:
        with parallel_config(backend="ray", n_jobs=n_jobs or -1):
            yield
    finally:
        ray.shutdown()
