from stand_ins import sources  # noqa: F401
