"""Workers that return many results at once: Ray's, and joblib's own processes of that kind."""

import os
import signal
import sys

import pytest
import test_machines
from joblib import parallel_config
from test_machines import accuracy, batch, records, same_reports, same_verdicts, small_batches, wait_for

import certify
from certify.errors import WorkerLostError
from certify.jobs import parallel_backend, run_jobs

fixtures = (small_batches, test_machines.folder, test_machines.long_folder)
folder, long_folder = test_machines.folder, test_machines.long_folder


def squared(shared, job):
    return shared + job**2


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_results_come_in_rounds_where_they_do_not_come_one_by_one():
    with parallel_config(backend="multiprocessing", n_jobs=2):
        assert sorted(run_jobs(squared, 1, range(21), n_jobs=None)) == [1 + j**2 for j in range(21)]
        some = run_jobs(squared, 1, range(100), n_jobs=None)
        assert next(some) == 1
        some.close()


@pytest.fixture(scope="module")
def ray_workers():
    """Two Ray workers, processes of their own, which import what the tests import."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: the extra 'distributed'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        with parallel_backend("ray", n_jobs=2):
            yield ray


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_and_restarts_do_not_change_the_report(small_batches, tmp_path, ray_workers):
    alone, path = accuracy(), tmp_path / "results.jsonl"
    same_reports(accuracy(results=path), alone)
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(whole[:3]) + whole[3][:20])
    same_reports(accuracy(results=path), alone)
    assert sorted(path.read_text().splitlines()) == sorted(line.strip() for line in whole)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_worker_of_ray_that_dies_is_an_error(ray_workers):
    with pytest.raises(WorkerLostError, match="a worker died"):
        list(run_jobs(lambda shared, job: os._exit(1), None, [1, 2, 3], n_jobs=2))


@pytest.mark.slow
def test_a_killed_run_on_ray_goes_on_and_does_nothing_twice(long_folder):
    pytest.importorskip("ray", reason="Ray is not installed: the extra 'distributed'")
    path = long_folder / "results.jsonl"
    with batch(long_folder, "--jobs", "2", "--backend", "ray") as process:
        wait_for(path, 12, process)
        os.killpg(process.pid, signal.SIGKILL)
    kept = path.read_bytes()
    kept = kept[: kept.rfind(b"\n") + 1]
    assert 12 <= kept.count(b"\n") < 101
    with batch(long_folder, "--jobs", "2", "--backend", "ray") as process:
        printed, told = process.communicate(timeout=400)
    assert process.returncode == 0, told
    assert path.read_bytes().startswith(kept)
    assert len(records(path)) == 100
    alone = certify.verify_many(certify.read_instances(long_folder))
    same_verdicts(certify.verify_many(certify.read_instances(long_folder), results=path), alone)
    words = [line.split(",")[2] for line in printed.splitlines() if ".onnx," in line]
    assert words == [verdict.answer.name.lower() for verdict in alone.verdicts]
