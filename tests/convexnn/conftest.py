import jaxtyping
import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """The problems here are tiny: threads that wait for each other cost more than they do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def unchecked():
    """As users run it: array shapes and types are not checked against the annotations, which doubles the speed."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
