"""What runs the service elsewhere, as far as it can be tested here: the Dockerfile, and the guide's unit and probes."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from nescio.cli import main
from nescio.serving.service import FREE

ROOT = Path(__file__).parents[2]
IGNORED = ROOT / "docker/Dockerfile.dockerignore"


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """Its instructions in order: the word, and what it is given."""
    text = (ROOT / "docker/Dockerfile").read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [(word, rest.strip()) for line in lines.splitlines() if line for word, _, rest in [line.partition(" ")]]


def given(steps: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for found, rest in steps if found == word]


def test_everything_that_it_copies_is_there_and_not_ignored(steps: Any) -> None:
    kept = {line[1:] for line in IGNORED.read_text().splitlines() if line.startswith("!")}
    copied = [w for rest in given(steps, "COPY") if not rest.startswith("--from") for w in rest.split()[:-1]]
    assert len(copied) == 5
    assert set(copied) == kept
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= kept  # the wheel is built from these


def test_the_constraints_hold_a_version_of_everything_that_is_installed(steps: Any, tmp_path: Path) -> None:
    (command,) = [rest for rest in given(steps, "RUN") if rest.startswith("sed")]
    script, out = re.fullmatch(r"sed -n '(.+)' requirements/dev.txt > (\S+)", command).groups()
    lines = subprocess.run(
        ["sed", "-n", script, ROOT / "requirements/dev.txt"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    (install,) = [rest for rest in given(steps, "RUN") if "pip install" in rest]
    assert f"--constraint {out}" in install
    assert install.endswith('".[serve]"')
    pinned = {line.partition("==")[0] for line in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["serve"]
    names = {re.match(r"[A-Za-z0-9_-]+", w)[0].lower().replace("_", "-") for w in wanted}
    assert len(names) > 15
    assert names <= pinned
    assert not [line for line in lines if "--hash" in line or "\\" in line]


def test_it_serves_as_somebody_without_rights(steps: Any) -> None:
    (user,) = given(steps, "USER")
    assert user.isdecimal()
    assert int(user) > 0
    assert any(f"--uid {user}" in rest for rest in given(steps, "RUN"))
    order = [word for word, _ in steps]
    assert order.index("USER") > max(i for i, word in enumerate(order) if word in ("RUN", "COPY"))
    (program, name), options = (json.loads(given(steps, word)[0]) for word in ("ENTRYPOINT", "CMD"))
    assert program == "nescio"
    assert name == "serve"
    params = served(options)
    assert str(params["file"]) == "/models/detector.nescio"
    assert params["host"] == "0.0.0.0"  # noqa: S104 - inside a container
    assert given(steps, "EXPOSE") == [str(params["port"])]


@pytest.mark.parametrize(("status", "ends"), [(200, 0), (503, 1)])
def test_its_health_check_asks_whether_the_service_is_ready(steps: Any, status: int, ends: int) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    asked: list[str] = []
    (check,) = given(steps, "HEALTHCHECK")
    program, *words = json.loads(check.partition("CMD ")[2])
    assert program == "python"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    there = [w.replace(":8000", f":{server.server_address[1]}") for w in words]
    done = subprocess.run([sys.executable, *there], capture_output=True, check=False)
    server.shutdown()
    server.server_close()
    assert done.returncode == ends
    (path,) = asked
    assert path in FREE  # it needs no token


def test_no_address_but_an_images_name_stands_in_it() -> None:
    text = (ROOT / "docker/Dockerfile").read_text()
    assert re.findall(r"https?://[^/:' ]+", text) == ["http://127.0.0.1"]
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"python:3.11-slim"}


def in_the_guide(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs/guides/deploy.md").read_text(), re.DOTALL)
    return found


def served(options: list[str]) -> dict[str, Any]:
    with main.get_command(None, "serve").make_context("serve", options, resilient_parsing=True) as context:
        return context.params


def test_the_guides_unit_starts_the_service() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str
    unit.read_string(in_the_guide("ini"))
    program, name, *options = shlex.split(unit["Service"]["ExecStart"])
    assert (Path(program).name, name) == ("nescio", "serve")
    assert float(unit["Service"]["TimeoutStopSec"]) > served(options)["timeout"]


def test_the_guides_probes_ask_paths_that_need_no_token(steps: Any) -> None:
    pod = yaml.safe_load(in_the_guide("yaml"))["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    assert {kind: get["path"] for kind, get in asked.items()} == {
        "startup": "/ready",
        "readiness": "/ready",
        "liveness": "/health",
    }
    assert {get["path"] for get in asked.values()} <= FREE
    params = served(container["args"])
    assert {get["port"] for get in asked.values()} == {params["port"]}
    assert pod["terminationGracePeriodSeconds"] > params["timeout"]
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(params["file"].parent) in mounted
    written = [value for value in re.findall(r"[A-Z_]+=(/\S+)", given(steps, "ENV")[0]) if value.startswith("/tmp")]  # noqa: S108
    assert len(written) == 2
    assert "/tmp" in mounted  # noqa: S108 - the rest of the container cannot be written to
