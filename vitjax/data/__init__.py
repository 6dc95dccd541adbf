"""Data: sources, preprocessing strings, host and device ops, and the pipeline that yields batches."""
