def write(found, workdir): pass
