"""The files for a platform: valid, pinned, without secrets, and of variables that are read."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

import sdcore
from flows.servers import standing
from tasks.tracking.stores import ARTIFACTS, TRACKING
from tests.helpers.paths import ROOT

FOLDER = ROOT / "deployments"
KUBERNETES = "1.32"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
MANIFESTS = {
    f"{path.stem} {each['kind']} {each['metadata']['name']}": each
    for path in sorted((FOLDER / "kubernetes").glob("*.yaml"))
    if path.stem != "kustomization"
    for each in yaml.safe_load_all(path.read_text())
}
PODS = {name: each["spec"]["template"]["spec"] for name, each in MANIFESTS.items()
        if "template" in each.get("spec", {})}  # fmt: skip
CONTAINERS = {name: pod["containers"][0] for name, pod in PODS.items()}

# Read by images of others, and by libraries that list their variables nowhere.
OTHERS = {
    "POSTGRES_USER", "POSTGRES_PASSWORD", "MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD", "PGPASSWORD",
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "DO_NOT_TRACK", "OMP_NUM_THREADS",
    "SDCORE_MINIO_PASSWORD",  # by the command of the service
}  # fmt: skip


def environment(service):
    return service.get("environment", {})


def manifest(kind, name):
    return next(each for each in MANIFESTS.values()
                if (each["kind"], each["metadata"]["name"]) == (kind, name))  # fmt: skip


@pytest.mark.parametrize("name", MANIFESTS)
def test_kubernetes_knows_every_field(name):
    kubernetes_validate.validate(MANIFESTS[name], KUBERNETES, strict=True)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl")
def test_kustomize_gives_every_manifest_and_the_pinned_image():
    command = ["kubectl", "kustomize", FOLDER / "kubernetes"]
    built = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = list(yaml.safe_load_all(built))
    assert len(found) == len(MANIFESTS)
    names = (each["metadata"] for each in found if each["kind"] != "Namespace")
    assert {each["namespace"] for each in names} == {"sdcore"}
    images = set(re.findall(r"image: (\S+)", built))
    assert images == {f"registry.example/sdcore:{sdcore.__version__}"}


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_one_that_a_restricted_namespace_takes(name):
    pod, container = PODS[name], CONTAINERS[name]
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]
    if "Job" not in name:
        ports = {port.get("name") for port in container["ports"]}
        for probe in ("startupProbe", "livenessProbe"):
            assert container[probe]["httpGet"]["port"] in ports


def test_what_kubernetes_refers_to_is_there():
    claims = [v["persistentVolumeClaim"]["claimName"] for pod in PODS.values()
              for v in pod.get("volumes", []) if "persistentVolumeClaim" in v]  # fmt: skip
    assert claims == ["workspace"] and manifest("PersistentVolumeClaim", "workspace")
    documented = set(
        re.findall(r"secret generic (\S+)", (FOLDER / "kubernetes" / "settings.yaml").read_text())
    )
    for container in CONTAINERS.values():
        for source in container["envFrom"]:
            assert manifest("ConfigMap", source["configMapRef"]["name"])
        references = [each["valueFrom"]["secretKeyRef"]["name"] for each in container["env"]]
        assert set(references) <= documented
    worker = PODS["worker Deployment worker"]
    assert (
        worker["nodeSelector"]
        and CONTAINERS["worker Deployment worker"]["resources"]["limits"]["nvidia.com/gpu"]
    )


def test_every_service_of_compose_has_a_pinned_image_and_waits_for_ones_that_are_there():
    assert set(COMPOSE) <= {"name", "services", "configs", "volumes"} | {
        key for key in COMPOSE if key.startswith("x-")
    }
    for service in SERVICES.values():
        assert re.fullmatch(r"\S+:\S*\d+\.?\S*", service["image"])
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[needed]
            else:
                assert SERVICES[needed].get("restart", "no") == "no"
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in COMPOSE["volumes"]
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:")


def test_every_own_image_is_of_this_version():
    images = {service["image"] for service in SERVICES.values() if "build" in service}
    images |= {container["image"] for container in CONTAINERS.values()}
    assert images == {f"sdcore:{sdcore.__version__}"}
    build = SERVICES["worker"]["build"]
    assert (FOLDER / build["context"]).resolve() == ROOT
    copied = re.findall(r"^COPY (.*) \S+$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    assert all((ROOT / name).exists() for line in copied for name in line.split())
    base = re.search(
        r"^FROM python:(3\.\d+)\.\d+-", (FOLDER / "Dockerfile").read_text(), re.MULTILINE
    )
    assert base and base[1] == "3.11"  # for which the CPU's torch is locked


def secrets():
    """Values of every variable whose name says that it is a secret, by where they are."""
    named = re.compile(r"(PASSWORD|SECRET|AUTH_STRING)")
    for name, service in SERVICES.items():
        for variable, value in environment(service).items():
            if named.search(variable):
                yield f"{name} {variable}", value
    for name, container in CONTAINERS.items():
        for each in container["env"]:
            yield f"{name} {each['name']}", each.get("value")


def test_no_file_holds_a_secret():
    for where, value in secrets():
        assert value is None or re.fullmatch(r"\$\{SDCORE_\w+:\?.*\}", value), where
    for name, each in MANIFESTS.items():
        assert each["kind"] != "Secret", name
    for path in [FOLDER / "compose.yaml", FOLDER / "slurm.sh", *(FOLDER / "kubernetes").iterdir()]:
        assert not re.search(r"://[^/\s]*:[^/\s]*@", path.read_text()), path


def variables():
    """Names of the variables that the files set for Prefect, MLflow and sdcore."""
    for service in SERVICES.values():
        yield from environment(service)
    for each in MANIFESTS.values():
        if each["kind"] == "ConfigMap":
            yield from each["data"]
    for container in CONTAINERS.values():
        yield from (each["name"] for each in container["env"])
    text = (FOLDER / "slurm.sh").read_text()
    yield from re.findall(r"^export (\w+)", text, re.MULTILINE)
    yield from re.findall(r"\$\{(MLFLOW_\w+)", text)


def read_by_sdcore():
    """Names of variables in the source."""
    sources = [
        path for folder in ("sdcore", "tasks", "flows") for path in (ROOT / folder).rglob("*.py")
    ]
    return set(
        re.findall(
            r"\b(?:SDCORE|PREFECT|MLFLOW)_[A-Z0-9_]+\b", " ".join(p.read_text() for p in sources)
        )
    )


def test_every_variable_is_one_that_somebody_reads():
    from mlflow import environment_variables
    from mlflow.cli import server
    from prefect.settings.legacy import _get_settings_fields
    from prefect.settings.models.root import Settings

    known = OTHERS | read_by_sdcore() | {TRACKING, ARTIFACTS, *standing.PREFECT_TABLES}
    known |= {each.name for each in vars(environment_variables).values() if hasattr(each, "name")}
    known |= {option.envvar for option in server.params if isinstance(option.envvar, str)}
    known |= set(_get_settings_fields(Settings))
    assert set(variables()) - known == set()


def test_mlflows_options_are_its_own():
    from mlflow.cli import server

    for command in (
        SERVICES["mlflow"]["command"],
        CONTAINERS["mlflow Deployment mlflow"]["command"],
    ):
        assert command[:2] == ["mlflow", "server"]
        server.make_context("mlflow server", command[2:], resilient_parsing=False)


def test_the_same_commands_run_in_both():
    for name in ("prefect", "mlflow"):
        assert SERVICES[name]["command"] == CONTAINERS[f"{name} Deployment {name}"]["command"]
    compose, kubernetes = (
        SERVICES["deployments"]["command"][-1],
        CONTAINERS["deployments Job deployments"]["command"][-1],
    )
    assert shlex.split(compose) == shlex.split(kubernetes)


@pytest.fixture
def slurm(tmp_path):
    """Runs slurm.sh with an srun that prints what it is given."""
    srun = tmp_path / "srun"
    srun.write_text(
        "#!/bin/sh\n"
        'echo "$PREFECT_SERVER_DATABASE_CONNECTION_URL $OMP_NUM_THREADS"\n'
        'printf "%s\\n" "$@"\n'
    )
    srun.chmod(0o755)

    def submit(*arguments, **variables):
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        command = ["bash", FOLDER / "slurm.sh", *arguments]
        return subprocess.run(command, env=path | variables, capture_output=True, text=True)

    return submit


def test_the_slurm_script_hands_its_settings_on(slurm):
    server = {"MLFLOW_TRACKING_URI": "http://mlflow:5000", "SLURM_CPUS_PER_TASK": "16"}
    done = slurm("paper", "/shared/a run", "training.rounds=3", "seeds=[0, 1]", **server)
    first, *words = done.stdout.splitlines()
    tables, threads = first.split()
    assert threads == "16" and tables.startswith("sqlite+aiosqlite:////")
    assert not Path(tables.removeprefix("sqlite+aiosqlite:///")).parent.exists()  # it cleans up
    assert words == ["sdcore", "run", "paper", "training.rounds=3", "seeds=[0, 1]",
                     "--workspace", "/shared/a run"]  # fmt: skip


@pytest.mark.parametrize(("arguments", "said"), [(["paper"], "usage"), (["paper", "/w"], "MLFLOW")])
def test_the_slurm_script_refuses_what_would_go_wrong(slurm, arguments, said):
    done = slurm(*arguments)
    assert done.returncode and said in done.stderr
