"""The demo: its input, its placements over a fake store, its processes, its folders and its report."""

from __future__ import annotations

import decimal
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from tierstore.ringbuf.errors import ConfigError, Full
from tierstore.service import datagen, demo, demo_check, demo_executor, demo_folder, demo_input, kmeans
from tierstore.service.demo_placement import PLACEMENTS, REFERENCE, Job, Service, measure, serve_arguments, shares
from tierstore.service.demo_process import DemoError, LocalTeam, ProcessTeam
from tierstore.service.demo_report import size_text


class FakeStore:
    """A dict of tables; its first `dram_objects` objects count as in DRAM, the others as in the lower tier."""

    def __init__(self, lower="pmem", dram_objects=2, full_puts=0):
        self.tables, self.full_puts = {}, full_puts
        self.lower, self.dram_objects = lower, dram_objects
        self.bytes_read = {"dram": 0, lower: 0}

    def put(self, key, value, *, keep=False):
        assert keep, "input must not be evicted"
        if self.full_puts:
            self.full_puts -= 1
            raise Full("dram is full")
        self.tables[key] = pa.Table.from_batches([value])

    def get(self, key):
        tier = "dram" if list(self.tables).index(key) < self.dram_objects else self.lower
        self.bytes_read[tier] += self.tables[key].nbytes
        return self.tables[key]

    def stats(self):
        return {"tiers": {tier: {"bytes_read": count} for tier, count in self.bytes_read.items()}}

    def close(self):
        pass


def silent(*_):
    """Progress that nobody watches."""


def surveyed(paths, columns=(), bytes_max=1 << 30):
    planned = demo_input.plan([str(path) for path in paths], columns, bytes_max, 1 << 20)
    surveys = [demo_input.survey(group, planned.columns, seed=1) for group in planned.groups]
    data = demo_input.number_pieces(planned, [survey.group for survey in surveys])
    return data, [survey.candidates for survey in surveys]


@pytest.fixture
def small_job(tmp_path, monkeypatch):
    """Eight pieces in two files of two row groups."""
    monkeypatch.setattr(datagen, "ROW_GROUP_BYTES", 20_000)
    monkeypatch.setattr(demo_input, "PIECE_BYTES_MAX", 10_000)
    spec = datagen.ClusterSpec(2_000, dimension_count=4, file_count=2)
    data, candidates = surveyed([datagen.write_file(tmp_path, spec, index) for index in range(2)])
    return Job(data, demo_input.choose_start(candidates, 5, seed=1), iterations=3)


def all_rows(data):
    batches = [batch for group in data.groups for _, batch in demo_input.read_pieces(group, data.columns)]
    return pa.Table.from_batches(batches)


# Input


def test_generated_files_are_the_same_for_the_same_seed(tmp_path):
    spec = datagen.ClusterSpec(500, dimension_count=3, file_count=2, seed=7)
    first = [pq.read_table(datagen.write_file(tmp_path, spec, index)) for index in range(2)]
    again = [pq.read_table(datagen.write_file(tmp_path, spec, index)) for index in range(2)]
    assert first == again and first[0] != first[1]
    assert sum(table.num_rows for table in first) == 500


def test_generated_rows_are_normal_around_their_clusters(tmp_path):
    spec = datagen.ClusterSpec(40_000, dimension_count=2, cluster_count=1, file_count=1)
    means, deviations = datagen.clusters(spec)
    table = pq.read_table(datagen.write_file(tmp_path, spec, 0))
    rows = np.column_stack([column.to_numpy() for column in table.columns])
    assert np.abs(rows.mean(axis=0) - means[0]).max() < 5 * deviations.max() / 200
    np.testing.assert_allclose(rows.std(axis=0), deviations[0], rtol=0.03)


def test_numeric_columns_become_float64_and_rows_that_are_not_finite_go(tmp_path):
    table = pa.table(
        {
            "whole": pa.array([1, 2, 3, None, 5], pa.int32()),
            "name": pa.array(list("abcde")),
            "real": pa.array([0.5, float("nan"), 1.5, 2.5, 3.5], pa.float32()),
            "price": pa.array([decimal.Decimal(f"{n}.25") for n in range(5)], pa.decimal128(9, 2)),
        }
    )
    pq.write_table(table, tmp_path / "t.parquet")
    data, _ = surveyed([tmp_path / "t.parquet"])
    assert data.columns == ("whole", "real", "price")
    assert all_rows(data).to_pydict() == {
        "whole": [1.0, 3.0, 5.0],
        "real": [0.5, 1.5, 3.5],
        "price": [0.25, 2.25, 4.25],
    }
    assert (data.groups[0].dropped_rows, data.row_count) == (2, 3)


def test_pieces_do_not_depend_on_how_a_group_is_decoded(small_job, monkeypatch):
    whole = all_rows(small_job.data).to_batches()
    monkeypatch.setattr(demo_input, "GROUP_BYTES_MAX", 0)
    assert all_rows(small_job.data).to_batches() == whole


def test_the_size_limit_cuts_whole_rows(small_job):
    paths = [group.path for group in small_job.data.groups]
    data, _ = surveyed(dict.fromkeys(paths), bytes_max=32 * 1_300)
    assert data.row_count == 1_300 and data.rows_left_out == 700


@pytest.mark.parametrize(("dram_bytes", "piece_bytes"), [(None, 1 << 20), (64 << 20, 4 << 20), (1 << 40, 127 << 16)])
def test_pieces_are_a_small_part_of_dram(tmp_path, dram_bytes, piece_bytes):
    pq.write_table(pa.table({"a": np.zeros(9), "b": np.zeros(9)}), tmp_path / "t.parquet")
    planned = demo_input.plan([str(tmp_path / "t.parquet")], [], 1 << 40, dram_bytes)
    assert planned.groups[0].piece_rows_max == piece_bytes // 16


@pytest.mark.parametrize(
    ("inputs", "columns", "words"),
    [
        (["nothing-*.parquet"], [], "no file matches"),
        (["absent.parquet"], [], "readable Parquet"),
        (["text.parquet"], [], "readable Parquet"),
        (["t.parquet"], ["name"], "numeric columns"),
        (["t.parquet"], ["missing"], "numeric columns"),
        (["names.parquet"], [], "it has none"),
        (["empty.parquet"], [], "at least one row"),
    ],
)
def test_input_that_cannot_be_used_is_named(tmp_path, monkeypatch, inputs, columns, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.parquet").write_text("not Parquet")
    pq.write_table(pa.table({"name": ["a"], "x": [1.0]}), "t.parquet")
    pq.write_table(pa.table({"name": ["a"]}), "names.parquet")
    pq.write_table(pa.table({"x": pa.array([], pa.float64())}), "empty.parquet")
    with pytest.raises(ConfigError, match=words):
        demo_input.plan(demo_input.find_files(inputs), columns, 1 << 30)


def test_too_few_different_rows_are_refused():
    with pytest.raises(ConfigError, match="at least 3"):
        demo_input.choose_start([np.zeros((9, 2)), np.ones((9, 2))], 3, seed=1)


@pytest.mark.parametrize("bad", [{"iterations": 0}, {"centroids": 0}, {"executors": 65}, {"size_bytes": 5}])
def test_options_out_of_range_are_refused(bad):
    with pytest.raises(ConfigError):
        demo.DemoOptions(**bad)


# Placements over a fake store


def test_every_placement_gives_the_same_bits_and_counts_its_tiers(small_job):
    reference = measure(REFERENCE, small_job, LocalTeam(2), None, silent)
    assert reference.tier_bytes is None
    for placement in PLACEMENTS:
        store = FakeStore(placement.tiers[-1] if placement.tiers else "pmem", full_puts=1)
        service = Service(store, "", [], None) if placement.kind == "store" else None
        found = measure(placement, small_job, LocalTeam(2, lambda _, store=store: store), service, silent)
        assert found.centroids.tobytes() == reference.centroids.tobytes()
        assert len(found.seconds) == 3
        if service:
            assert sum(found.tier_bytes.values()) == 3 * small_job.data.data_bytes
            assert len(store.tables) == small_job.data.piece_count


def test_centroids_are_those_of_the_rows(small_job):
    table = all_rows(small_job.data)
    block = kmeans.block_of_arrays([column.to_numpy() for column in table.columns])
    expected = kmeans.lloyd([block], small_job.start, 3)
    found = measure(REFERENCE, small_job, LocalTeam(3), None, silent)
    assert kmeans.relative_difference(found.centroids, expected) < 1e-12


def test_shares_are_all_pieces_once(small_job):
    for placement in (*PLACEMENTS, REFERENCE):
        mine = shares(placement, small_job.data, 3, "")
        assert sorted(piece for share in mine for piece in share.pieces) == list(range(small_job.data.piece_count))


def test_the_last_tier_holds_everything_and_dram_its_budget(small_job, tmp_path):
    by_name = {p.name: serve_arguments(p, small_job, tmp_path, tmp_path) for p in PLACEMENTS if p.kind == "store"}
    whole = int(by_name["dram"][1])
    assert whole > small_job.data.data_bytes
    assert by_name["dram+pmem"][:4] == ["--dram", "1048576", "--pmem", f"{tmp_path / 'pmem'}:{whole}"]
    assert by_name["dram+disk"] == ["--dram", "1048576", "--disk", f"{tmp_path / 'disk'}:{whole}"]


def test_a_lost_piece_is_an_error(small_job):
    store = FakeStore()
    store.get = lambda key: pa.Table.from_batches([store.tables[key].to_batches()[0].slice(1)])
    with pytest.raises(DemoError, match="rows were seen"):
        measure(PLACEMENTS[0], small_job, LocalTeam(2, lambda _: store), Service(store, "", [], None), silent)


def test_a_store_that_stays_full_is_an_error(small_job, monkeypatch):
    monkeypatch.setattr(demo_executor, "PUT_PATIENCE_S", 0.02)
    store = FakeStore(full_puts=1_000)
    with pytest.raises(Full):
        measure(PLACEMENTS[0], small_job, LocalTeam(1, lambda _: store), Service(store, "", [], None), silent)


# The second opinion and the report


def report_of(job, opinion):
    reference = measure(REFERENCE, job, LocalTeam(2), None, silent)
    parquet = measure(PLACEMENTS[3], job, LocalTeam(2), None, silent)
    return demo.make_report(demo.DemoOptions(), job, [parquet], (reference, reference), opinion)


def test_report_without_scikit_learn_says_so(small_job, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    report = report_of(small_job, demo_check.run(small_job.data, small_job.start, 3))
    console = Console(file=io.StringIO(), width=200)
    report.show(console)
    assert "not compared (scikit-learn is not installed" in console.file.getvalue()
    assert report.agrees


def test_report_is_json_and_a_table(small_job):
    opinion = demo_check.Opinion("1.0", small_job.data.row_count, small_job.start)
    report = report_of(small_job, opinion)
    found = json.loads(report.to_json())
    assert [row["name"] for row in found["placements"]] == ["parquet", "numpy"]
    assert found["checks"][0]["same_bits"] and found["placements"][1]["ratio_to_numpy"] == 1.0
    assert not report.agrees, "the start is not the result"
    console = Console(file=io.StringIO(), width=200)
    report.show(console)
    assert "DIFFER" in console.file.getvalue() and "emulated" in console.file.getvalue()


def test_an_empty_centroid_is_not_compared_with_scikit_learn(small_job):
    job = small_job._replace(start=np.concatenate([small_job.start, [[1e9] * 4]]))
    report = report_of(job, demo_check.Opinion("1.0", job.data.row_count, job.start))
    assert report.checks[-1].agrees is None and "lost all its rows" in report.checks[-1].note


@pytest.mark.slow
def test_centroids_agree_with_scikit_learn(small_job, monkeypatch):
    pytest.importorskip("sklearn")
    opinion = demo_check.run(small_job.data, small_job.start, 3)
    assert report_of(small_job, opinion).agrees
    monkeypatch.setattr(demo_check, "SAMPLE_BYTES_MAX", 32 * 700)
    sample = demo_check.run(small_job.data, small_job.start, 3)
    report = report_of(small_job, sample)
    assert sample.row_count == 700 and report.agrees and "first 700 of 2,000 rows" in report.checks[-1].note


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0"), (512, "512 B"), (3 << 29, "1.5 GiB"), (384 << 20, "384 MiB"), (10_485_760, "10 MiB")]
)
def test_size_text(size, text):
    assert size_text(size) == text


# Folders


def test_sweep_removes_the_dead_and_leaves_the_living(tmp_path):
    living = demo_folder.RunFolder(tmp_path)
    dead = tmp_path / f"{demo_folder.PREFIX}dead"
    (dead / "inside").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    assert demo_folder.sweep([tmp_path]) == [dead]
    assert living.path.is_dir() and (tmp_path / "other").is_dir()
    living.close()
    assert os.listdir(tmp_path) == ["other"]


def test_sweep_does_not_follow_links(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / f"{demo_folder.PREFIX}link").symlink_to(tmp_path / "precious")
    assert demo_folder.sweep([tmp_path]) == []
    assert (tmp_path / "precious").is_dir()


def test_a_folder_swept_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    lock, calls = demo_folder._lock, []

    def swept_first(descriptor):
        calls.append(descriptor)
        if len(calls) == 1:
            folder = Path(os.readlink(f"/proc/self/fd/{descriptor}")).parent
            (folder / demo_folder.OWNER).unlink()
            folder.rmdir()
        return lock(descriptor)

    monkeypatch.setattr(demo_folder, "_lock", swept_first)
    made = demo_folder.RunFolder(tmp_path)
    assert made.path.is_dir() and len(calls) == 2
    made.close()


def test_file_system_of_known_mounts():
    assert demo_folder.file_system_of(Path("/proc/self")) == "proc"


# Processes


@pytest.mark.slow
def test_a_killed_executor_is_an_error_with_its_signal():
    team = ProcessTeam(2)
    try:
        os.kill(team.pids()[1], signal.SIGKILL)
        with pytest.raises(DemoError, match="executor 1 .* killed by SIGKILL"):
            team.call("warm_up", [(), ()])
    finally:
        team.close()


@pytest.mark.slow
def test_an_exception_in_an_executor_arrives_with_its_traceback():
    team = ProcessTeam(1)
    try:
        with pytest.raises(DemoError, match="executor 0 failed in 'survey'"):
            team.call("survey", [("not groups", (), 0)])
    finally:
        team.close()


PROGRAM = """
import sys
from pathlib import Path
from rich.console import Console
from tierstore.service import demo
demo.PLACEMENTS = tuple(p for p in demo.PLACEMENTS if p.kind != "store")
options = demo.DemoOptions(size_bytes=int(sys.argv[2]), iterations=int(sys.argv[3]), directory=Path(sys.argv[1]))
report = demo.run_demo(options, Console(file=sys.stdout))
assert report.agrees
"""


def start_demo(folder, size, iterations):
    command = [sys.executable, "-c", PROGRAM, str(folder), str(size), str(iterations)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_run_without_a_store_leaves_nothing(tmp_path):
    with start_demo(tmp_path, 4 << 20, 2) as run:
        output, _ = run.communicate(timeout=120)
    assert run.returncode == 0 and "no store (Parquet): iterate" in output
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, None), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_an_interrupted_run_leaves_nothing(tmp_path, number, code):
    """Even kill -9 of the driver: the executors notice, end and sweep."""
    with start_demo(tmp_path, 8 << 20, 1_000) as run:
        for line in run.stdout:
            if "iterate" in line:
                break
        run.send_signal(number)
        run.stdout.read()
        assert run.wait(30) != 0
    assert code is None or run.returncode == code
    deadline = time.monotonic() + 10
    while os.listdir(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert os.listdir(tmp_path) == []


# With the real store


def run_command(*arguments):
    command = [sys.executable, "-m", "tierstore.service.cli", "demo", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_quick_demo_with_the_real_store():
    run = run_command("--quick", "--json")
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    rows = {row["name"]: row for row in report["placements"]}
    assert list(rows) == ["dram", "dram+pmem", "dram+disk", "parquet", "numpy"]
    assert all(check["same_bits"] for check in report["checks"][:4])
    data_bytes, iterations = report["settings"]["data_bytes"], report["settings"]["iterations"]
    assert rows["dram+pmem"]["disk_read_bytes"] == rows["dram+pmem"]["disk_written_bytes"] == 0
    for name, lower in (("dram+pmem", "pmem"), ("dram+disk", "disk")):
        tiers = rows[name]["tier_bytes"]
        assert sum(tiers.values()) >= data_bytes * iterations
        assert tiers[lower] > tiers["dram"] > 0.1 * data_bytes * iterations


@pytest.mark.slow
def test_demo_over_files_of_the_user(tmp_path):
    random = np.random.default_rng(0)
    table = pa.table({"id": np.arange(200_000), "x": random.normal(size=200_000), "name": ["n"] * 200_000})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=70_000)
    run = run_command("--input", str(tmp_path / "*.parquet"), "--quick", "--json")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["settings"]["columns"] == ["id", "x"]
