"""The column cache: Parquet columns kept decoded in the store, and tables over them."""
