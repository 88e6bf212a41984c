"""A folder for what Spark itself spills, on the file system of the PMem tier: settings for configure(spill=...).

The tier's own bytes are promised to it by the file system, so spills take what is left there, and of that no more than they were
given: engines/java/Spills.java watches. A tier on a device has no file system.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from tierstore.ringbuf.errors import ConfigError, PeerLost
from tierstore.service.client import SocketControl

TIER = "pmem"


def spill_settings(socket: str, size: int) -> dict[str, str]:
    """Spark's settings by name. Makes the folder on this node; Spark makes it on others. Raises ConfigError.

    socket: of a daemon of this node, which says where its PMem lies.
    """
    if os.environ.get("SPARK_LOCAL_DIRS"):
        raise ConfigError(
            "SPARK_LOCAL_DIRS", os.environ["SPARK_LOCAL_DIRS"], "unset: it takes the place of the spill folder"
        )
    file = _file_of_tier(socket, size)
    folder = file.absolute().parent / f"tierstore-spark-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigError("spill", size, f"only where a folder can be made beside the tier: {error}") from None
    free = shutil.disk_usage(folder).free
    if free < size:
        raise ConfigError(
            "spill", size, f"at most the {free} bytes that are free beside {file}; or make the tier smaller"
        )
    return {"spark.local.dir": str(folder), "spark.tierstore.spill": str(size)}


def _file_of_tier(socket: str, size: int) -> Path:
    try:
        control = SocketControl(socket)
    except (PeerLost, OSError) as error:
        raise ConfigError(
            "spill", size, f"a folder beside the {TIER} tier of this node's daemon, but {error}"
        ) from None
    try:
        tiers = control.call("stats")["tiers"]
    finally:
        control.close()
    if TIER not in tiers:
        raise ConfigError(
            "spill", size, f"only with a {TIER} tier (tierstore serve --pmem PATH:SIZE); there is {', '.join(tiers)}"
        )
    path = Path(tiers[TIER]["paths"][0])
    if not stat.S_ISREG(path.stat().st_mode):
        raise ConfigError(
            "spill", size, f"only with a {TIER} tier in a file: {path} is a device and has no file system"
        )
    return path
