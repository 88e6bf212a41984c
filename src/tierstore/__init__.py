"""tierstore: columnar blocks kept across memory, persistent memory and disk, handed out without copying."""
