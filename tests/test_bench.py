"""The benchmarks run as they are called; what they measure is not judged here."""

import pytest

from conftest import assert_mistake, run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["loader", "explain"])
def test_on_the_built_in_data(name, shapes_dir, tmp_path):
    script = f"bench/{name}.py"
    flags = ("--dataset=shapes", "--images=40", "--rounds=1")
    done = run(script, *flags, f"--data_dir={shapes_dir}")
    assert done.returncode == 0, done.stderr
    assert "threads" in done.stdout
    assert_mistake(run(script, f"--data_dir={tmp_path}"), str(tmp_path))
