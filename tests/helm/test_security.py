"""What a reviewer of a chart asks for, in whatever the chart renders."""

import re
from typing import Any

import pytest

from .conftest import CHART, EVERYTHING, Objects, Render
from .test_render import CASES, pod_templates

QUANTITY = re.compile(r"[0-9.]+(m|[KMGT]i)?")


@pytest.fixture(params=CASES)
def objects(request: pytest.FixtureRequest, cases: dict[str, Objects]) -> Objects:
    """What one set of values renders to."""
    return cases[request.param]


def of_kind(objects: Objects, *kinds: str) -> Objects:
    return [found for found in objects if found["kind"] in kinds]


def ray_clusters(objects: Objects) -> Objects:
    """The spec of every Ray cluster, wherever it stands."""
    specs = {
        "RayService": lambda spec: spec["rayClusterConfig"],
        "RayCluster": lambda spec: spec,
        "RayJob": lambda spec: spec["rayClusterSpec"],
        "RayCronJob": lambda spec: spec["jobTemplate"]["rayClusterSpec"],
    }
    return [specs[found["kind"]](found["spec"]) for found in of_kind(objects, *specs)]


def containers(template: dict[str, Any]) -> Objects:
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def test_pods_keep_the_restricted_standard(objects: Objects) -> None:
    templates = pod_templates(objects)
    assert templates
    for template in templates:
        spec = template["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 10000
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all("hostPath" not in volume for volume in spec.get("volumes", []))
        for container in containers(template):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
    for cluster in ray_clusters(objects):
        if "autoscalerOptions" in cluster:
            assert cluster["autoscalerOptions"]["securityContext"]["readOnlyRootFilesystem"] is True


def test_whatever_is_written_to_is_mounted(objects: Objects) -> None:
    for template in pod_templates(objects):
        volumes = {volume["name"] for volume in template["spec"].get("volumes", [])}
        for container in containers(template):
            mounts = {mount["mountPath"] for mount in container.get("volumeMounts", [])}
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
            for variable in container.get("env", []):
                if variable["name"] in ("HOME", "HF_HOME", "TRIPTYCH_CACHE"):
                    assert any(variable["value"].startswith(path) for path in mounts)


def test_only_the_autoscaler_gets_a_token_of_kubernetes(objects: Objects) -> None:
    for template in pod_templates(objects):
        head = template["spec"]["containers"][0]["name"] == "ray-head"
        scaled = any(cluster.get("enableInTreeAutoscaling") for cluster in ray_clusters(objects))
        assert template["spec"]["automountServiceAccountToken"] is (head and scaled)
    assert of_kind(objects, "Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding") == []


def test_ray_asks_for_its_token(objects: Objects) -> None:
    for cluster in ray_clusters(objects):
        assert cluster["authOptions"]["mode"] == "token"


def test_nothing_but_the_endpoint_is_reachable_from_outside(objects: Objects) -> None:
    assert of_kind(objects, "Service") == []  # KubeRay's own are of the type asked for below
    for cluster in ray_clusters(objects):
        assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    for service in of_kind(objects, "RayService"):
        assert service["spec"]["serveService"]["spec"]["type"] == "ClusterIP"
        assert [port["port"] for port in service["spec"]["serveService"]["spec"]["ports"]] == [8000]
    for ingress in of_kind(objects, "Ingress"):
        [rule] = ingress["spec"]["rules"]
        assert {path["path"] for path in rule["http"]["paths"]} == {"/v1", "/healthz"}
        assert {path["backend"]["service"]["port"]["name"] for path in rule["http"]["paths"]} == {"serve"}


def test_no_secret_is_written_down(objects: Objects) -> None:
    assert of_kind(objects, "Secret") == []
    for template in pod_templates(objects):
        for container in containers(template):
            for variable in container.get("env", []):
                if re.search("PASSWORD|TOKEN|KEY", variable["name"]):
                    assert "secretKeyRef" in variable["valueFrom"]


def test_images_are_pinned(objects: Objects) -> None:
    for template in pod_templates(objects):
        for container in containers(template):
            assert re.fullmatch(r".+(:[^:/]+|@sha256:[0-9a-f]{64})", container["image"])
            assert not container["image"].endswith(":latest")


def test_every_container_says_what_it_takes(objects: Objects) -> None:
    for template in pod_templates(objects):
        for container in containers(template):
            requests, limits = container["resources"]["requests"], container["resources"]["limits"]
            assert requests == limits
            assert QUANTITY.fullmatch(requests["cpu"])
            assert QUANTITY.fullmatch(requests["memory"])


def test_labels_are_the_recommended_ones(objects: Objects) -> None:
    for found in objects:
        labels = found["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == "lab"
        assert {f"app.kubernetes.io/{key}" for key in ("name", "component", "version", "managed-by")} <= labels.keys()
        assert "helm.sh/chart" in labels
        assert found["metadata"]["namespace"] == "ml"
    for template in pod_templates([found for found in objects if found["kind"] != "Pod"]):
        # A new chart version alone must not replace a running cluster.
        assert not {"helm.sh/chart", "app.kubernetes.io/version"} & template["metadata"]["labels"].keys()


def test_shared_memory_is_memory(objects: Objects) -> None:
    for cluster in ray_clusters(objects):
        for template in pod_templates(cluster):
            [shm] = [volume for volume in template["spec"]["volumes"] if volume["name"] == "shm"]
            assert shm["emptyDir"]["medium"] == "Memory"
            assert shm["emptyDir"]["sizeLimit"]


def test_head_leaves_the_work_to_the_workers(objects: Objects) -> None:
    for cluster in ray_clusters(objects):
        alone = not cluster.get("workerGroupSpecs")
        assert ("num-cpus" not in cluster["headGroupSpec"]["rayStartParams"]) is alone
    for service in of_kind(objects, "RayService"):
        workers = service["spec"]["rayClusterConfig"].get("workerGroupSpecs")
        assert service["spec"]["excludeHeadPodFromServeSvc"] is bool(workers)


def test_streams_are_finished_before_a_pod_goes(objects: Objects) -> None:
    for service in of_kind(objects, "RayService"):
        for template in pod_templates(service["spec"]["rayClusterConfig"]):
            sleep = template["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
            assert template["spec"]["terminationGracePeriodSeconds"] > int(sleep[1]) + 10


# Network policies


def policies(objects: Objects) -> dict[str, dict[str, Any]]:
    return {found["metadata"]["name"]: found["spec"] for found in of_kind(objects, "NetworkPolicy")}


def test_every_pod_is_denied_first_and_has_its_policy(objects: Objects) -> None:
    deny = policies(objects)["lab-triptych-deny"]
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & deny.keys()
    for template in pod_templates(objects):
        labels = template["metadata"]["labels"]
        chosen = [policy for policy in policies(objects).values() if _selects(policy["podSelector"], labels)]
        assert deny in chosen
        assert any(policy.get("egress") for policy in chosen)


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return bool(selector["matchLabels"].items() <= labels.items())


def test_clusters_do_not_reach_each_other(cases: dict[str, Objects]) -> None:
    found = policies(cases["everything"])
    for name in ("endpoint", "cluster", "job-once", "job-nightly"):
        policy = found[f"lab-triptych-{name}"]
        inside = [peer for rule in policy["ingress"] for peer in rule["from"] if "namespaceSelector" not in peer]
        components = {peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in inside}
        assert components == ({"endpoint", "test"} if name == "endpoint" else {name})


def test_each_port_is_open_to_those_who_need_it(cases: dict[str, Objects]) -> None:
    opened: dict[int, set[str]] = {}
    for rule in policies(cases["everything"])["lab-triptych-endpoint"]["ingress"]:
        for port in rule.get("ports", []):
            opened.setdefault(port["port"], set()).update(str(peer) for peer in rule["from"])
    assert opened.keys() == {8000, 8080, 8265, 44217, 44227}
    assert "kuberay-operator" in "".join(opened[8265])
    assert len(opened[8265]) == 1
    assert "monitoring" in "".join(opened[8080])
    assert len(opened[8080]) == 1
    assert 10001 not in opened  # Ray Client executes code


def _ports(policy: dict[str, Any]) -> set[int]:
    return {port["port"] for rule in policy["egress"] for port in rule.get("ports", [])}


def test_egress_is_what_the_values_need(cases: dict[str, Objects], render: Render) -> None:
    assert _ports(policies(cases["everything"])["lab-triptych-endpoint"]) == {53, 443, 6432, 6379, 9000}
    assert _ports(policies(cases["airgapped"])["lab-triptych-endpoint"]) == {53}
    assert _ports(policies(cases["ha"])["lab-triptych-autoscaler"]) == {443, 6443}
    [public] = [
        peer["ipBlock"]
        for rule in policies(cases["defaults"])["lab-triptych-endpoint"]["egress"]
        for peer in rule.get("to", [])
        if "ipBlock" in peer and peer["ipBlock"]["cidr"] == "0.0.0.0/0"
    ]
    assert "169.254.0.0/16" in public["except"]  # the cloud's metadata service hands out credentials
    assert policies(render({"networkPolicy": {"enabled": False}})) == {}


# What the values turn on


def test_fault_tolerance_and_autoscaling(cases: dict[str, Objects]) -> None:
    assert all("gcsFaultToleranceOptions" not in found["spec"] for found in of_kind(cases["everything"], "RayJob"))
    for cluster in ray_clusters(cases["ha"]):
        assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == "redis.database.svc:6379"
        assert cluster["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]["name"]
        assert cluster["autoscalerOptions"]["version"] == "v2"
        for group in cluster["workerGroupSpecs"]:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_disruption_budgets_never_cover_a_head(cases: dict[str, Objects]) -> None:
    [budget] = of_kind(cases["everything"], "PodDisruptionBudget")
    assert budget["spec"]["minAvailable"] == 2  # of three
    assert budget["spec"]["selector"]["matchLabels"]["ray.io/group"] == "serve"
    assert of_kind(cases["defaults"], "PodDisruptionBudget") == []


def test_gpus_are_asked_for_and_told_to_ray(cases: dict[str, Objects]) -> None:
    [service] = of_kind(cases["everything"], "RayService")
    [group] = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert group["rayStartParams"]["num-gpus"] == "1"
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert group["template"]["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-L40S", "pool": "cpu"}
    [cluster] = of_kind(cases["everything"], "RayCluster")
    [group] = cluster["spec"]["workerGroupSpecs"]
    assert group["rayStartParams"]["num-gpus"] == "2"  # Ray does not know MIG's resources by name
    assert group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/mig-3g.40gb"] == 2


def test_queues_find_what_they_admit(cases: dict[str, Objects], render: Render) -> None:
    [job] = of_kind(cases["kueue"], "RayJob")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"
    assert job["spec"]["shutdownAfterJobFinishes"] is True  # or the quota is never given back
    for found in of_kind(cases["everything"], "RayService", "RayCluster", "RayJob"):
        assert found["metadata"]["labels"]["volcano.sh/queue-name"] == "training"


def test_streams_are_neither_buffered_nor_cut(cases: dict[str, Objects]) -> None:
    [ingress] = of_kind(cases["everything"], "Ingress")
    annotations = ingress["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    assert int(annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"]) >= 3600
    assert ingress["spec"]["tls"] == [{"hosts": ["llm.example.com"], "secretName": "tls"}]
    [route] = of_kind(cases["everything"], "HTTPRoute")
    assert route["spec"]["rules"][0]["timeouts"] == {"request": "3600s", "backendRequest": "3600s"}
    assert {match["path"]["value"] for match in route["spec"]["rules"][0]["matches"]} == {"/v1", "/healthz"}


def test_claims_survive_the_release(cases: dict[str, Objects]) -> None:
    claims = of_kind(cases["everything"], "PersistentVolumeClaim")
    assert {claim["metadata"]["name"] for claim in claims} == {"lab-triptych-data", "lab-triptych-models"}
    for claim in claims:
        assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert of_kind(cases["ha"], "PersistentVolumeClaim")[0]["spec"]["accessModes"] == ["ReadWriteMany"]


def test_monitoring_finds_every_pod_and_port(cases: dict[str, Objects]) -> None:
    [monitor] = of_kind(cases["everything"], "PodMonitor")
    for template in pod_templates(ray_clusters(cases["everything"])):
        assert _selects(monitor["spec"]["selector"], template["metadata"]["labels"])
    ports = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    head = ray_clusters(cases["everything"])[0]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert ports <= {port["name"] for port in head["ports"]}
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_dashboards_are_one_map_each(cases: dict[str, Objects]) -> None:
    maps = [found for found in of_kind(cases["everything"], "ConfigMap") if "-dashboard-" in found["metadata"]["name"]]
    assert len(maps) == 4
    for found in maps:
        assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert sum(map(len, found["data"].values())) < 1_000_000
        assert all("$__rate_interval" in text or "expr" in text for text in found["data"].values())


def test_runbooks_follow_the_base(render: Render) -> None:
    values = EVERYTHING | {"monitoring": {"rules": True, "runbooks": "https://git.example.com/triptych/"}}
    [found] = of_kind(render(values), "PrometheusRule")
    rules = [rule for group in found["spec"]["groups"] for rule in group["rules"]]
    links = [rule["annotations"]["runbook_url"] for rule in rules if "alert" in rule]
    assert links
    assert all(link.startswith("https://git.example.com/triptych/deploy/README.md#") for link in links)


def test_upgrades_run_two_clusters_only_where_they_can_share(cases: dict[str, Objects]) -> None:
    strategies = {
        case: service["spec"]["upgradeStrategy"]["type"]
        for case, objects in cases.items()
        for service in of_kind(objects, "RayService")
    }
    assert strategies["defaults"] == strategies["laptop"] == strategies["gpu-node"] == "None"
    assert strategies["ha"] == strategies["everything"] == "NewCluster"


def test_labels_of_the_chart_cannot_be_overridden(render: Render) -> None:
    ours = {"app.kubernetes.io/component": "mine", "helm.sh/chart": "mine", "release": "a"}
    objects = render(
        {
            "commonLabels": ours,
            "head": {"podLabels": ours},
            "monitoring": {"podMonitor": True, "labels": {"release": "b"}},
        }
    )
    assert all("mine" not in found["metadata"]["labels"].values() for found in objects)
    assert {found["metadata"]["labels"]["release"] for found in of_kind(objects, "PodMonitor")} == {"b"}
    for template in pod_templates(objects):
        assert template["metadata"]["labels"]["app.kubernetes.io/component"] != "mine"


def test_templates_render_the_same_without_a_cluster() -> None:
    for template in (CHART / "templates").rglob("*.*"):
        assert not re.search(
            r"\{\{[^}]*\b(lookup|now|uuidv4|rand\w+|gen[A-Z]\w+)\b", template.read_text(encoding="utf-8")
        )


def test_object_names_follow_the_overrides(render: Render) -> None:
    assert {found["metadata"]["name"] for found in of_kind(render({}, name="triptych"), "RayService")} == {"triptych"}
    renamed = render({"fullnameOverride": "llm"})
    assert all(found["metadata"]["name"].startswith("llm") for found in renamed)
