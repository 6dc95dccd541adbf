"""Ops that rearrange an example on the host: pick, pad, join, look up. None looks at pixels."""
