"""The jar that Spark's JVMs load: shipped in the wheel, or built here by plain javac against PySpark's own jars.

python -m tierstore.engines.spark_jar          prints the jar's path, building it if need be
python -m tierstore.engines.spark_jar --ship   puts one beside the sources, for a wheel that is built next
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import tierstore
from tierstore.ringbuf.errors import ConfigError

SOURCES = Path(__file__).parent / "java"
SHIPPED = SOURCES / "tierstore-spark.jar"
PACKAGE = "io/tierstore/spark"
PLUGIN = "io.tierstore.spark.TierPlugin"
RELEASE = "17"  # the oldest Java that Spark 4 runs on
REMEDY = "a JDK to build the jar with: apt install openjdk-17-jdk-headless, or set JAVA_HOME to one"
KEPT = 4  # jars in the cache folder, of this and earlier versions
_TIME = (2000, 1, 1, 0, 0, 0)  # of all entries: equal sources make equal jars


def sources() -> list[Path]:
    """The Java sources."""
    return sorted(SOURCES.glob("*.java"))


def digest() -> str:
    """Of the sources and of what is written into the jar."""
    made = hashlib.sha256(tierstore.__version__.encode())
    for path in sources():
        made.update(path.name.encode() + b"\0" + path.read_bytes())
    return made.hexdigest()[:16]


def jar(environment: Mapping[str, str] = os.environ) -> Path:
    """The jar, of exactly these sources: as shipped, as built before, or built now (some seconds).

    Raises: ConfigError where there is neither a jar nor a JDK or a PySpark to build one with, and where javac fails.
    """
    if SHIPPED.is_file() and _digest_of(SHIPPED) == digest():
        return SHIPPED
    version = _pyspark_version()
    folder = Path(os.path.expanduser("~/.cache/tierstore/jars"))
    made = folder / f"tierstore-spark-{version}-{digest()}.jar"
    if not made.is_file():
        javac = find_javac(environment)
        folder.mkdir(parents=True, exist_ok=True)
        build(made, javac)
        _forget_old(folder)
    return made


def find_javac(environment: Mapping[str, str]) -> str:
    """The compiler: of JAVA_HOME, else in PATH. Raises ConfigError."""
    home = environment.get("JAVA_HOME", "")
    own = os.path.join(home, "bin", "javac") if home else ""
    found = own if own and os.access(own, os.X_OK) else shutil.which("javac", path=environment.get("PATH", os.defpath))
    if not found:
        raise ConfigError("javac", "", REMEDY)
    return found


def build(target: Path, javac: str) -> None:
    """Compile the sources and put the jar in place, whole or not at all."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        classes = Path(folder) / "classes"
        command = [javac, "--release", RELEASE, "-nowarn", "-cp", f"{_pyspark_jars()}/*", "-d", str(classes)]
        run = subprocess.run([*command, *map(str, sources())], capture_output=True, text=True, check=False)
        if run.returncode:
            raise ConfigError("javac", javac, f"one that compiles tierstore's sources; it said\n{run.stderr[-2000:]}")
        made = Path(folder) / "made.jar"
        _pack(made, classes)
        os.replace(made, target)


def _pack(made: Path, classes: Path) -> None:
    entries = {
        "META-INF/MANIFEST.MF": b"Manifest-Version: 1.0\r\n\r\n",
        f"{PACKAGE}/version": tierstore.__version__.encode(),
        f"{PACKAGE}/digest": digest().encode(),
    }
    for path in sorted(classes.rglob("*.class")):
        entries[path.relative_to(classes).as_posix()] = path.read_bytes()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name, _TIME), data, zipfile.ZIP_DEFLATED)


def _digest_of(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(f"{PACKAGE}/digest").decode()
    except (OSError, KeyError, zipfile.BadZipFile):
        return ""


def _pyspark_jars() -> Path:
    spec = importlib.util.find_spec("pyspark")
    if spec is None or spec.origin is None:
        raise ConfigError("pyspark", "", "PySpark, against whose jars ours is compiled: pip install 'tierstore[spark]'")
    return Path(spec.origin).parent / "jars"


def _pyspark_version() -> str:
    try:
        return importlib.metadata.version("pyspark")
    except importlib.metadata.PackageNotFoundError:
        raise ConfigError(
            "pyspark", "", "PySpark, against whose jars ours is compiled: pip install 'tierstore[spark]'"
        ) from None


def _forget_old(folder: Path) -> None:
    """Jars of earlier versions; a JVM that runs one keeps it open, but another may start with it, so some stay."""
    jars = sorted(folder.glob("tierstore-spark-*.jar"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in jars[KEPT:]:
        path.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the jar's path; --ship: build it beside the sources."""
    told = list(sys.argv[1:] if arguments is None else arguments)
    if told == ["--ship"]:
        build(SHIPPED, find_javac(os.environ))
        print(SHIPPED)
    elif not told:
        print(jar())
    else:
        raise SystemExit(f"{told}: --ship, or nothing")


if __name__ == "__main__":
    main()
