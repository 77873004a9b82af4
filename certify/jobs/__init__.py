"""Many questions: the workers that answer them, and the file that keeps the answers.

Nothing here knows what is asked, or needs torch.
"""

from certify.jobs.arrays import array_from_json, array_to_json
from certify.jobs.backends import BACKENDS, parallel_backend
from certify.jobs.digests import digest_of
from certify.jobs.engine import run_jobs
from certify.jobs.ledger import Ledger

__all__ = ["BACKENDS", "Ledger", "array_from_json", "array_to_json", "digest_of", "parallel_backend", "run_jobs"]
