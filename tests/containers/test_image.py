"""Our image by itself: who runs in it, how it ends, what is in its layers."""

from __future__ import annotations

import json
import re
import subprocess

import pytest

from tests.containers.images import Images

pytestmark = [pytest.mark.docker, pytest.mark.slow]
IMAGE_BYTES_MAX = 450 << 20
RUN_S = 60
TEST_TOOLS = ("pytest", "hypothesis", "testcontainers", "ruff", "import-linter")


def run(*command: str, code: int = 0) -> str:
    done = subprocess.run(["docker", *command], capture_output=True, text=True, check=False, timeout=RUN_S)
    assert done.returncode == code, done.stderr
    return done.stdout.strip()


def test_the_image_is_small_unprivileged_and_checked(built: Images) -> None:
    (facts,) = json.loads(run("image", "inspect", built.ours))
    assert facts["Size"] <= IMAGE_BYTES_MAX
    config = facts["Config"]
    assert config["User"] == "hostoffload" and config["Healthcheck"]["Test"] == ["CMD", "healthy"]
    assert config["Entrypoint"] == ["tini", "--", "hostoffload"], "a shell in between would keep SIGTERM to itself"
    layers = run("history", "--no-trunc", "--format", "{{.CreatedBy}}", built.ours)
    told = layers + json.dumps(config["Env"])
    assert not re.search(r"(?i)passw|secret|token|index[-_]url|proxy|[a-z]+://[^ ]*@", told), told


def test_the_image_has_the_lock_s_packages_and_no_tools_of_tests(built: Images) -> None:
    program = "import importlib.metadata as m; print(*sorted(f'{d.name.lower()}=={d.version}' for d in m.distributions()))"
    found = run("run", "--rm", "--entrypoint", "/opt/hostoffload/bin/python", built.ours, "-c", program).split()
    with open("requirements.lock", encoding="utf-8") as lock:
        locked = {line.split(" ")[0] for line in lock if "==" in line}
    names = [one for one in found if not one.startswith("hostoffload==")]
    assert len(names) < len(found) and {re.sub(r"[-_.]+", "-", one.split("==")[0]) + "==" + one.split("==")[1] for one in names} <= locked
    assert not [one for one in names if one.startswith((*TEST_TOOLS, "pip==", "setuptools=="))]


@pytest.mark.parametrize("service", ["agent", "cx", "target"])
def test_a_service_that_still_waits_for_its_broker_is_healthy_and_ends_at_sigterm(built: Images, service: str) -> None:
    name = run("run", "--detach", "--env", "HOSTOFFLOAD_KAFKA_BOOTSTRAP=127.0.0.1:9", built.ours, service, "run")
    try:
        run("exec", name, "bash", "-c", "for try in {1..200}; do healthy 2>/dev/null && exit; sleep 0.1; done; exit 1")
        run("exec", name, "healthy", "/readyz", code=1)
        run("stop", "--time", "20", name)
        assert run("inspect", "--format", "{{.State.ExitCode}}", name) in ("0", "143"), run("logs", name)
    finally:
        run("rm", "--force", "--volumes", name)
