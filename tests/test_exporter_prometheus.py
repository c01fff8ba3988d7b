# SPDX-License-Identifier: GPL-2.0-or-later
"""`exporter` with a real Prometheus, which scrapes it, and with promtool."""

import contextlib
import json
import socket
import subprocess
import urllib.parse
from pathlib import Path

import monitoring
import pytest
from children import processes, wait_for
from exporters import exporter, get, make_certificates, samples
from memory import KINDS

from physview.commands.exporter import FILES, GROUPINGS
from physview.exporter import metrics
from physview.exporter.shipped import FOLDER, SHIPPED
from physview.recording.groups import read_groups
from physview.sources.procfs import ProcDir
from physview.text import proctext

pytestmark = pytest.mark.needs("prometheus")


def promtool(*words, **options):
    """The output of promtool, which must be content."""
    done = subprocess.run(
        ["promtool", *words],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, **options,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("by", GROUPINGS)
def test_promtool_finds_nothing_wrong_with_the_metrics(physview, by):
    for _ in range(20):  # other processes, and so groups, come and go
        names = read_groups(by)["name"]  # a container may have one cgroup only
        text = physview("exporter", "--once", "--by", by, "--top", "2").stdout
        if {*read_groups(by)["name"]} == {*names}:
            break
    assert promtool("check", "metrics", input=text) == ""
    found = samples(text)
    groups = {labels for name, labels in found if name == "physview_group_processes"}
    nr_named = sum(name is not None for name in names)
    has_other = nr_named > 2 or None in names
    assert len(groups) == min(nr_named, 2) + has_other
    assert any(("group", "other") in labels for labels in groups) == has_other


def test_promtool_reads_what_is_shipped(physview, tmp_path):
    for name in FILES:
        (tmp_path / SHIPPED[name]).write_text(physview("exporter", "--print", name).stdout)
    assert f"{len(monitoring.ALERTS)} rules found" in promtool(
        "check", "rules", tmp_path / "alerts.yml"
    )
    promtool("check", "config", tmp_path / "prometheus.yml")
    promtool("test", "rules", monitoring.ALERT_TESTS)
    assert json.loads((tmp_path / "dashboard.json").read_text())["panels"]


class Prometheus:
    """A server that scrapes two exporters each second, one of them with TLS and a password."""

    def __init__(self, folder, target, secured):
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.url = f"http://{address}/api/v1"
        text = (
            "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
            f"rule_files: [{FOLDER}/alerts.yml]\n"
            "scrape_configs:\n"
            f"- {{job_name: physview, static_configs: [{{targets: ['{target}']}}]}}\n"
            f"- {{job_name: secured, scheme: https, static_configs: [{{targets: ['{secured}']}}],\n"
            "  basic_auth: {username: me, password: secret}, tls_config:"
            " {ca_file: ca.pem, cert_file: client.pem, key_file: client.key}}\n"
        )
        (folder / "prometheus.yml").write_text(text)
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={folder}/prometheus.yml",
             f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder,
        )  # fmt: skip

    def query(self, query):
        """The series of a query: pairs of labels and value."""
        status, text = get(f"{self.url}/query?query={urllib.parse.quote(query)}")
        answer = json.loads(text)
        assert status == 200, (query, answer)
        return [(each["metric"], float(each["value"][1])) for each in answer["data"]["result"]]

    def has_rates(self):
        with contextlib.suppress(OSError, ValueError):
            return len(self.query("rate(physview_vmstat_pgfault_total[1m])")) == 2  # of two scrapes
        return False


@pytest.fixture(scope="module")
def child():
    """A process with memory of every kind, which touches more for each line."""
    more = "import sys\nfor line in sys.stdin:\n    region = b'x' * (1 << 20)\n    print('done')"
    with processes() as start:
        yield start(KINDS, wait=f"{more}\n    sys.stdout.flush()")


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory, child):
    folder = make_certificates(tmp_path_factory.mktemp("prometheus"))
    (folder / "passwords").write_text("me:secret\n")
    (folder / "passwords").chmod(0o600)
    words = ["--password-file", f"{folder}/passwords", "--client-ca", f"{folder}/ca.pem"]
    words += ["--cert", f"{folder}/server.pem", "--key", f"{folder}/server.key"]
    with (
        exporter("--by", "pid", "--top", "10000", "--frames-every", "60") as served,
        exporter("--top", "3", *words) as secured,
    ):
        server = Prometheus(folder, *(each.url.split("/")[2] for each in (served, secured)))
        try:
            wait_for(server.has_rates, 60)
            yield server
        finally:
            server.process.kill()
            server.process.wait()


def figures_of_maps(physview, pid):
    """What `maps --rollup` and /proc say of a process, by metric."""
    document = json.loads(physview("maps", pid, "--rollup", "--frames", "--json").stdout)
    total = document["processes"][0]["total"]
    with ProcDir(int(pid)) as proc:
        status = proctext.fields_by_name(proc.read("status"))
    return {
        "resident_bytes": total["resident_bytes"],
        "swapped_bytes": total["swapped_bytes"],
        "file_bytes": total["file_bytes"],
        "anonymous_bytes": total["resident_bytes"] - total["file_bytes"],
        "huge_bytes": total["huge_bytes"],
        "extents": total["nr_extents"],
        "largest_extent_bytes": total["largest_bytes"],
        "page_tables_bytes": proctext.size_of(status, b"VmPTE"),
        'faults_total{kind="minor"}': nr_faults(pid),
        'contiguous_bytes{size="64KiB"}': total["contiguous"].get("65536", 0),
        'contiguous_bytes{size="2MiB"}': total["contiguous"].get(str(2 << 20), 0),
    }


def nr_faults(pid):
    with ProcDir(int(pid)) as proc:
        return int(proc.read("stat").rpartition(b")")[2].split()[7])


@pytest.mark.needs("root")
def test_a_query_gives_the_figures_of_maps(prometheus, physview, child):
    """But for what is shared: that changes with other processes that map the same files.

    The kernel may move pages meanwhile, which the exporter sees only once the child has changed.
    """
    pid = str(child.pid)

    def found(metric):
        name, _, labels = metric.partition("{")
        query = f'physview_group_{name}{{pid="{pid}",{labels.rstrip("}")}}}'
        ((_, value),) = prometheus.query(query)
        return value

    for _ in range(5):
        wait_for(lambda: found('faults_total{kind="minor"}') == nr_faults(pid))
        expected = figures_of_maps(physview, pid)
        if {metric: found(metric) for metric in expected} == expected:
            break
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "done\n"
    assert {metric: found(metric) for metric in expected} == expected
    assert expected["resident_bytes"] > 1 << 20


def test_every_metric_and_every_query_of_the_dashboard_has_series(prometheus):
    """But for counters that this kernel lacks, and ratios of groups that have no such memory."""
    for metric in metrics.ALL:
        name = f"{metric.name}_total" if metric.kind == metrics.COUNTER else metric.name
        if metric not in metrics.MACHINE:
            assert prometheus.query(name), name
    dashboard = json.loads(Path(FOLDER, SHIPPED["dashboard"]).read_text())
    queries = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    ]
    assert queries == monitoring.queries()
    for query in queries:
        for variable, value in (
            ("$__rate_interval", "1m"), ("$instance", ".*"), ("$group", ".*")
        ):  # fmt: skip
            query = query.replace(variable, value)  # noqa: PLW2901
        assert prometheus.query(query), query


def test_prometheus_scrapes_with_tls_a_certificate_and_a_password(prometheus):
    groups = prometheus.query('physview_group_processes{job="secured"}')
    assert len(groups) == 4
    assert prometheus.query('up{job="secured"}')[0][1] == 1


def test_the_rules_run_and_the_scrapes_cost_what_they_say(prometheus):
    status, text = get(f"{prometheus.url}/rules")
    assert status == 200
    (group,) = json.loads(text)["data"]["groups"]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}
    ((_, said),) = prometheus.query('physview_exporter_scrape_cpu_seconds{job="physview"}')
    assert 0 < said < 60
    ((_, used),) = prometheus.query('process_cpu_seconds_total{job="physview"}')
    assert used > said
