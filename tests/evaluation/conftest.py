"""One small evaluation for all tests that look at what it left."""

import pytest

from tests.evaluation.small_suites import run


@pytest.fixture(scope="package")
def done(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("evaluation")
    return tmp_path, run(tmp_path, tmp_path / "out")
