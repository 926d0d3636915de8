"""The verbs, called in this process as from a shell."""

import json
from typing import Any

from click.testing import CliRunner, Result

from sparsify.cli.main import main


def run(*args: object) -> Result:
    """What a command gave; options may be of any type."""
    return CliRunner().invoke(main, [str(a) for a in args])


def answer(*args: object) -> Any:
    """The one JSON object on stdout."""
    done = run(*args, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def refusal(*args: object) -> str:
    """The one sentence that a command ends with."""
    done = run(*args)
    assert done.exit_code == 1 and len(done.stderr.strip().splitlines()[-1]) > 20, done.output
    return done.stderr.strip().splitlines()[-1]
