"""The workspace's DuckDB file: schema, reads and writes, SQL views, export."""
