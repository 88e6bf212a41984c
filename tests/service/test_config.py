"""Configurations that cannot be used are refused with what was given and what would do."""

from __future__ import annotations

from pathlib import Path

import pytest

import tierstore
from tierstore.service.config import load_config

CONFIGS = {
    'drum = "8MiB"': ["drum", "8MiB", "did you mean 'dram'"],
    "[server]\nport = 5": ["server", "port", "known settings"],
    'dram = "12MB"': ["dram", "12MB", "MiB"],
    "dram = -5": ["dram", "-5", "not negative"],
    'dram = "-5MiB"': ["dram", "-5MiB", "a size"],
    "dram = true": ["dram", "True", "a size"],
    "dram = [1, 2]": ["dram", "[1, 2]", "a size"],
    "dram = 1979-05-27": ["dram", "1979", "a size"],
    'dram = "1MiB"': ["dram", "1MiB", "at least 4 segments"],
    f"dram = {10**30}": ["dram", "1000000", "below"],
    f'dram = "{"9" * 400}TiB"': ["dram", "below"],
    'dram = "900000TiB"': ["segment", "32MiB", "fewer than"],
    "socket = 5": ["socket", "5", "a path"],
    "pools = {default = 5}": ["pools.default", "5", "another name"],
    "dram_dir = 5": ["dram_dir", "5", "a path"],
    'dram_dir = "/nowhere"': ["dram_dir", "/nowhere", "existing directory"],
    "pmem = 5": ["pmem", "5", "PATH:SIZE"],
    'pmem = "/tmp/x:-8MiB"': ["pmem", "-8MiB", "a size"],
    'pmem = "/nowhere/x:8MiB"': ["pmem", "/nowhere/x", "existing directory"],
    'pmem = "/tmp/x:8MiB"\npmem_profile = "optane"': ["pmem_profile", "optane", "known profiles"],
    "disk = 7": ["disk", "7", "DIR:SIZE"],
    'disk = "/tmp"': ["disk", "/tmp", "PATH:SIZE"],
    'disk = ["/tmp/x:-8MiB"]': ["disk", "-8MiB", "a size"],
    "disk = {a = 1}": ["disk", "{'a': 1}", "DIR:SIZE"],
    'segment = "3MiB"': ["segment", "3MiB", "a power of two"],
    "segment = -1": ["segment", "-1", "not negative"],
    'pools = "a"': ["pools", "a", "NAME = SIZE"],
    "pools = {a = -1}": ["pools.a", "-1", "not negative"],
    'pools = {a = "lots"}': ["pools.a", "lots", "a size"],
    'clients = "many"': ["clients", "many", "a whole number"],
    "clients = -1": ["clients", "-1", "8 to 4096"],
    "clients = 3.7": ["clients", "3.7", "a whole number"],
    'ephemeral = "perhaps"': ["ephemeral", "perhaps", "true or false"],
    'log_level = "loud"': ["log_level", "loud", "debug"],
    'listen = "0.0.0.0:80"': ["listen", "0.0.0.0:80", "loopback", "tls_cert and tls_key and token_file"],
    "disk_lz4 = 7": ["disk_lz4", "7", "true or false"],
    "dram = ": ["config", "config.toml", "a TOML file"],
    'dram = "8MiB"\ndram = "8MiB"': ["config", "config.toml", "a TOML file"],
}


@pytest.mark.parametrize("text", CONFIGS)
def test_a_configuration_that_cannot_be_used(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(tierstore.ConfigError) as caught:
        config = load_config(str(file), environ={}).resolve()
        from tierstore.service.layout import engine_config

        engine_config(config)
    assert all(word in str(caught.value) for word in CONFIGS[text]), caught.value


@pytest.mark.parametrize("made", ["nothing", "directory", "not text"])
def test_a_configuration_file_that_cannot_be_read(made: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    if made == "directory":
        file.mkdir()
    elif made == "not text":
        file.write_bytes(b"dram = \xff\xfe")
    with pytest.raises(tierstore.ConfigError, match="a readable file|a TOML file") as caught:
        load_config(str(file), environ={})
    assert str(file) in str(caught.value)
