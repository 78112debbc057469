"""Run by test_preflight.py: the command with each of several command lines, in forks that share what it imports.

Takes the command lines and prints exit code, output and errors of each, as JSON.
"""

import json
import os
import runpy
import sys
import tempfile

from experiments import preflight

if __name__ == "__main__":
    found = []
    for arguments in json.loads(sys.argv[1]):
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            if not (child := os.fork()):
                os.dup2(out.fileno(), 1)
                os.dup2(err.fileno(), 2)
                sys.argv = [preflight.__name__, *arguments]
                runpy.run_path(preflight.__file__, run_name="__main__")
                sys.exit()
            _, status = os.waitpid(child, 0)
            out.seek(0)
            err.seek(0)
            found.append([os.waitstatus_to_exitcode(status), out.read(), err.read()])
    print(json.dumps(found))
