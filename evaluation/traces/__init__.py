"""One row for each case that was asked over HTTP, journalled and kept as Parquet."""
