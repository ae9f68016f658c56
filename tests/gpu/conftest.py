"""The GPU, which all tests here need: `trainers/` alone, without Ray and MLflow."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def gpu() -> torch.device:
    """The first one; without any, the test is skipped."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """Float32 as on the CPU where mixed precision is off, and the kernels' settings put back after each test."""
    kernels = torch.backends.cudnn
    before = torch.backends.cuda.matmul.allow_tf32, kernels.allow_tf32, kernels.benchmark, kernels.deterministic
    torch.backends.cuda.matmul.allow_tf32 = kernels.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, kernels.allow_tf32, kernels.benchmark, kernels.deterministic = before
    torch.use_deterministic_algorithms(False)
