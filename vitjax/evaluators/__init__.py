"""stand-in"""
def create(name, options, *, task, mesh, num_classes):
    return None
