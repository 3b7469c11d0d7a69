"""Tables in files, read row by row: NDJSON, JSON documents, CSV, Excel workbooks, Parquet."""
