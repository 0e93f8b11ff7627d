"""Renders the chart with each of its ci/ values and checks what comes out: each object by Kubernetes's own
schemas, the configuration by the proxy itself. So too the configuration in deploy/compose, and, where there is
systemd, its unit.
"""

import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import helm_python
import kubernetes_validate
import yaml

CHART = Path("deploy/helm/pingora-mcp")
COMPOSE = Path("deploy/compose/edge.yaml")
UNIT = Path("deploy/pingora-mcp.service")
PROGRAMS = Path(os.environ.get("CARGO_TARGET_DIR", "target"), "debug")

# The oldest that Chart.yaml allows, and the newest that there is a schema of.
KUBERNETES = ("1.27", "1.37")

# What each of the ci/ values comes to.
SIZES = {"full-values.yaml": "3 to 10", "minimal-values.yaml": "3"}
PORTS = {"full-values.yaml": 443, "minimal-values.yaml": 80}
BUDGETS = {"full-values.yaml": {"minAvailable": 2}, "minimal-values.yaml": {"maxUnavailable": 1}}

# What a container finds in its environment.
ENVIRONMENT = {name: secrets.token_hex(32) for name in ("SEAL_KEY", "SEAL_KEY_0", "SEAL_KEY_1", "ALPHA_TOKEN")}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, helm_python.Chart.load(CHART) as chart:
        folder = Path(folder)
        make_certificate(folder)
        for file in sorted(CHART.glob("ci/*-values.yaml")):
            check_chart(chart, file, folder)
        check_refusals(chart)
        check_configuration(COMPOSE, COMPOSE.read_text(), folder)
        check_unit(folder)


def check_chart(chart: helm_python.Chart, file: Path, folder: Path) -> None:
    rendered = chart.render(yaml.safe_load(file.read_text()), name="edge", namespace="mcp")
    manifests = [text for name, text in rendered.items() if name.endswith(".yaml")]
    objects = [entry for text in manifests for entry in yaml.safe_load_all(text) if entry]
    for entry in objects:
        for version in KUBERNETES:
            kubernetes_validate.validate(entry, version, strict=True)
    kinds = {entry["kind"]: entry for entry in objects}
    assert len(kinds) == len(objects), "two objects of one kind"
    pod = kinds["Deployment"]["spec"]["template"]["spec"]
    drain = chart.merge_values(yaml.safe_load(file.read_text()))["drain"]
    assert pod["terminationGracePeriodSeconds"] > drain["preStop"] + drain["deadline"], "it would be killed"
    image = pod["containers"][0]["image"]
    pushed = f"docker build --tag registry.example.com/{image} --push"
    assert pushed in (CHART / "values.yaml").read_text(), pushed
    port = PORTS[file.name]
    assert [entry["port"] for entry in kinds["Service"]["spec"]["ports"]] == [port], kinds["Service"]
    notes = next(text for name, text in rendered.items() if name.endswith("NOTES.txt"))
    assert notes.startswith(f"{SIZES[file.name]} proxies, reached at edge-pingora-mcp.mcp.svc:{port}.\n"), notes
    budget = kinds["PodDisruptionBudget"]["spec"]
    del budget["selector"]
    assert budget == BUDGETS[file.name], budget
    configuration = kinds["ConfigMap"]["data"]["edge.yaml"]
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    for name in re.findall(r"/etc/pingora-mcp/\S+", configuration):
        assert str(Path(name).parent) in mounts, f"{name} is not in {mounts}"
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}, pod
    check_configuration(file, configuration, folder)
    print(f"{file}: {', '.join(sorted(kinds))}")


def check_refusals(chart: helm_python.Chart) -> None:
    """Each for its own reason: but for that, the values are good."""
    config = yaml.safe_load((CHART / "ci/minimal-values.yaml").read_text())["config"]
    for reason, values in (
        ("config.routes: expected at least one route", {}),
        ("'replica' not allowed", {"config": config, "replica": 3}),
        ("'/podDisruptionBudget'", {"config": config, "podDisruptionBudget": {"minAvailable": 2, "maxUnavailable": 1}}),
        ("'/config/listeners'", {"config": config | {"listeners": []}}),
        ("'/config/admin'", {"config": config | {"admin": {}}}),
        ("'/config/drain'", {"config": config | {"drain": {}}}),
        ("'/config/sessions/seal'", {"config": config | {"sessions": {"seal": {"keys": []}}}}),
    ):
        try:
            chart.render(values, name="edge", namespace="mcp")
        except helm_python.HelmError as error:
            assert reason in str(error), error
            continue
        sys.exit(f"{CHART}: accepts {values}")


def check_configuration(source: Path, text: str, folder: Path) -> None:
    """By -t of the proxy, with what is only there in a container replaced by what is here."""
    text = re.sub("/etc/pingora-mcp/(tls|alpha)", str(folder), text)
    for name in ("alpha", "beta", "gamma"):
        text = text.replace(f"http://{name}:", "http://127.0.0.1:")
    path = folder / "edge.yaml"
    path.write_text(text)
    command = [PROGRAMS / "pingora-mcp", "-t", "-c", path]
    checked = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    if checked.returncode != 0:
        sys.exit(f"{source}: {checked.stderr}\n{text}")


def check_unit(folder: Path) -> None:
    """By systemd, which only warns of most mistakes, with the program that is here."""
    if not shutil.which("systemd-analyze"):
        print(f"{UNIT}: not checked, as there is no systemd")
        return
    path = folder / UNIT.name
    path.write_text(UNIT.read_text().replace("/usr/local/bin", str(PROGRAMS.absolute())))
    checked = subprocess.run(["systemd-analyze", "verify", "--man=no", path], capture_output=True, text=True)
    if checked.returncode != 0 or checked.stderr:
        sys.exit(f"{UNIT}: {checked.stderr}")
    print(f"{UNIT}: as systemd has it")


def make_certificate(folder: Path) -> None:
    """With the names of a secret of type kubernetes.io/tls."""
    files = [folder / "tls.crt", folder / "tls.key"]
    subprocess.run([PROGRAMS / "examples/self_signed", *files], check=True, capture_output=True)
    shutil.copy(files[0], folder / "ca.crt")


if __name__ == "__main__":
    main()
